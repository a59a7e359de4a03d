//! Values by protocol, their means, intervals and tests: by hand, against SciPy, and what must hold of any table.

use std::collections::BTreeMap;

use burn::tensor::DType;
use emend::EditRequest;
use emend::data::record::EditRecord;
use emend::edit::likelihood::Scored;
use emend::edit::score::score;
use emend::evaluate::case::{Case, FreeAnswer, FreeText};
use emend::evaluate::significance::{sign_test, t_test, test};
use emend::evaluate::{
    Better, Kind, Measured, Method, ProbeRow, Protocol, Rival, Snippets, Test, Unit, Value, about, aggregate, best,
    failed, holm, measure, measure_all, paired, perplexity, reference_score, values, windows,
};
use emend::model::tokenizer::Continuation;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::common::{Golden, fixture, model};

fn close(found: f64, wanted: f64) {
    assert!((found - wanted).abs() <= 1e-9 * wanted.abs().max(1.0), "{found} {wanted}");
}

/// A target of as many tokens as there are log-probabilities.
fn scored(target: &[u32], log: &[f32], argmax: &[u32]) -> Scored {
    Scored { target: target.to_vec(), log_probabilities: log.to_vec(), argmax: argmax.to_vec(), text: None }
}

/// A row without a rival: its target, and the likeliest tokens before and after.
fn row(kind: Kind, class: Option<&str>, target: &[u32], before: &[u32], after: &[u32]) -> ProbeRow {
    let log = vec![-1.0; target.len()];
    ProbeRow {
        record: 0,
        described: false,
        kind,
        class: class.map(str::to_owned),
        prompt: String::new(),
        target: "Rome".into(),
        given: true,
        aliases: vec![],
        test: None,
        separator: None,
        lowered: false,
        apart: false,
        before: scored(target, &log, before),
        after: scored(target, &log, after),
        rival: None,
    }
}

/// The row with log-probabilities after the edit, its own and a rival's of another length.
fn against(row: ProbeRow, own: &[f32], rival: &[f32]) -> ProbeRow {
    let other = |log: &[f32]| scored(&vec![99; log.len()], log, &vec![0; log.len()]);
    let after = Scored { log_probabilities: own.to_vec(), ..row.after.clone() };
    let rival = Rival { target: "Oslo".into(), before: other(rival), after: other(rival) };
    ProbeRow { after, rival: Some(rival), ..row }
}

fn case(id: &str, rows: Vec<ProbeRow>) -> Case {
    let record = EditRecord { id: id.into(), ..EditRecord::default() };
    Case { request: EditRequest::new(format!("The capital of {id} is"), "Rome"), rows, ..Case::new(&record, 1) }
}

/// The values of a case but for those of `efficiency`, which it always has.
fn named(case: &Case) -> BTreeMap<String, f64> {
    let values = values(case).into_iter().filter(|value| value.protocol != Protocol::Efficiency);
    values.map(|value| (format!("{} {}", value.protocol.name(), value.name), value.value)).collect()
}

/// Numbers of a case, as if they had been found by the protocol `counterfact`.
fn numbers(id: &str, values: &[(&str, f64)]) -> Measured {
    let value = |&(name, value): &(&str, f64)| Value { protocol: Protocol::Counterfact, name: name.into(), value };
    let empty = measure(&case(id, vec![]), None);
    Measured { values: values.iter().map(value).collect(), ..empty }
}

#[test]
fn values_are_those_computed_by_hand() {
    let (near, far) = (Some("near"), Some("far"));
    let table = vec![
        // nll 2 against 2 by targets of two tokens and of one: a tie, which loses; and exact all the same.
        against(row(Kind::Rewrite, None, &[1, 2], &[9, 9], &[1, 2]), &[-1.0, -3.0], &[-2.0]),
        // nll 1 against 3, with one of two tokens; nll 2.5 against 2, exact.
        against(row(Kind::Rephrase, None, &[1, 2], &[9, 9], &[1, 9]), &[-0.5, -1.5], &[-3.0]),
        against(row(Kind::Rephrase, None, &[1, 2], &[9, 9], &[1, 2]), &[-2.0, -3.0], &[-1.0, -3.0]),
        // The sum of log-probabilities is smaller, the mean larger: by token the target wins.
        against(row(Kind::Locality, near, &[3, 4], &[3, 4], &[3, 5]), &[-1.0, -1.0], &[-1.5]),
        against(row(Kind::Locality, near, &[3, 4], &[3, 4], &[3, 4]), &[-2.0, -2.0], &[-1.0]),
        // Without a rival: none of counterfact's. Wrong as before; and answered in fewer tokens, by another model.
        row(Kind::Locality, far, &[3], &[8], &[8]),
        row(Kind::Locality, far, &[3, 4, 5], &[3, 4, 5], &[3]),
        row(Kind::Portability, Some("alias"), &[5, 6, 7], &[0, 0, 0], &[5, 9, 7]),
    ];
    let found = named(&Case { essence: Some([10.0, 12.5]), ..case("a", table) });
    let e = |nll: f64| (-nll).exp();
    let wanted = [
        ("counterfact efficacy", 0.0),
        ("counterfact efficacy_magnitude", 0.0),
        ("counterfact efficacy_exact", 1.0),
        ("counterfact paraphrase", 0.5),
        ("counterfact paraphrase_magnitude", 0.5 * (e(1.0) - e(3.0) + e(2.5) - e(2.0))),
        ("counterfact paraphrase_exact", 0.5),
        ("counterfact neighborhood", 0.5),
        ("counterfact neighborhood_magnitude", 0.5 * (e(1.0) - e(1.5) + e(2.0) - e(1.0))),
        ("counterfact neighborhood_exact", 0.5),
        ("counterfact essence", 12.5),
        ("counterfact essence_rise", 2.5),
        ("easyedit rewrite_acc", 1.0),
        ("easyedit rephrase_acc", 0.75),
        ("easyedit locality/near", 0.75),
        ("easyedit locality/far", 0.5 * (1.0 + 1.0 / 3.0)),
        ("easyedit portability/alias", 2.0 / 3.0),
        ("mend edit_success", 1.0),
        ("mend generalization", 0.5),
        ("mend locality", 0.5),
        ("mend locality/near", 0.5),
        ("mend locality/far", 0.5),
        ("mend drawdown", 0.5),
        ("mend drawdown/near", 0.5),
        ("mend drawdown/far", 0.5),
    ];
    assert_eq!(found.keys().map(String::as_str).collect::<Vec<_>>(), {
        let mut names: Vec<&str> = wanted.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        names
    });
    wanted.iter().for_each(|&(name, value)| close(found[name], value));
}

/// Texts of which only one end is known are none of ROME's.
#[test]
fn fluency_is_of_whole_texts_under_romes_name() {
    let text = |after: &str, own: Option<&str>| FreeText {
        prompt: "It is".into(),
        after: after.into(),
        to_own_end: own.map(str::to_owned),
    };
    let of = |texts: Vec<FreeText>| named(&Case { texts, ..case("a", vec![]) });
    let found = of(vec![text(" so. And then it was not.", Some(" so."))]);
    assert!(found["counterfact fluency"] > found["generate fluency"] && found["generate fluency"] > 0.0);
    assert_eq!(found["easyedit fluency"], found["counterfact fluency"]);
    let old = of(vec![text(" so.", None)]);
    assert_eq!(old.keys().collect::<Vec<_>>(), ["generate fluency"]);
    close(old["generate fluency"], found["generate fluency"]);
}

/// A peak is a method's where nobody had worked in the process before, and what the process held then is no part of it.
#[test]
fn memory_is_what_an_editor_adds() {
    let of = |memory_before_bytes: Option<u64>| {
        let case = Case { peak_memory_bytes: 73 << 20, memory_before_bytes, ..case("a", vec![]) };
        values(&case).into_iter().find(|value| value.name == "peak_memory").map(|value| value.value)
    };
    assert_eq!((of(Some(61 << 20)), of(None)), (Some((12 << 20) as f64), None));
}

/// Files without ids number their records: case 0 of one may be another fact than case 0 of the other.
#[test]
fn pairs_are_made_by_what_was_asked() {
    let asked = |id: &str, prompt: &str, efficacy: f64| {
        let case = Case { request: EditRequest::new(prompt, "Rome"), ..case(id, vec![]) };
        let value = Value { protocol: Protocol::Counterfact, name: "efficacy".into(), value: efficacy };
        Measured { values: vec![value], ..measure(&case, None) }
    };
    let a = [asked("0", "Lyon is in", 1.0), asked("1", "Oslo is in", 0.0)];
    let b = [asked("0", "Oslo is in", 0.0), asked("1", "Bern is in", 0.0), asked("2", "Lyon is in", 1.0)];
    let found = paired(&a, &b, 0);
    assert_eq!((found[0].cases, found[0].mean), (2, 0.0));
    assert!(paired(&a[..1], &b[..2], 0).is_empty());
    // The same record twice is two cases.
    let twice = [asked("0", "Lyon is in", 1.0), asked("1", "Lyon is in", 1.0)];
    assert_eq!(paired(&twice, &twice, 0)[0].cases, 2);
    assert_eq!(paired(&twice, &b, 0)[0].cases, 1);
}

#[test]
fn a_case_has_values_only_of_what_it_has_data_for() {
    assert!(named(&case("a", vec![])).is_empty());
    let broken =
        Case { error: Some("no subject".into()), ..case("a", vec![row(Kind::Rewrite, None, &[1], &[1], &[1])]) };
    assert!(values(&broken).is_empty());
    assert_eq!(failed(&[broken.clone(), case("b", vec![])]), 1);
    assert!(measure(&broken, None).failed);
    let nothing_to_say = vec![f32::NAN; 2];
    let lost = against(row(Kind::Rewrite, None, &[1, 2], &[9, 9], &[0, 0]), &nothing_to_say, &nothing_to_say);
    let found = named(&case("a", vec![lost]));
    assert_eq!((found["counterfact efficacy"], found["counterfact efficacy_magnitude"]), (0.0, 0.0));
}

#[test]
fn free_answers_are_counted_by_kind() {
    let table = vec![
        row(Kind::Rewrite, None, &[1], &[1], &[1]),
        row(Kind::Rephrase, None, &[1], &[1], &[1]),
        row(Kind::Rephrase, None, &[1], &[1], &[1]),
        row(Kind::Locality, Some("near"), &[1], &[1], &[1]),
        row(Kind::Locality, Some("near"), &[1], &[1], &[1]),
    ];
    let answer = |row, before: &str, after: &str| FreeAnswer { row, before: before.into(), after: after.into() };
    let answers = vec![
        answer(0, "Oslo", " rome.\n"),
        answer(1, "Oslo", "It is Rome, surely."),
        answer(2, "Oslo", "Romeo"),
        answer(3, "Paris ", " Paris"),
        answer(4, "Paris", "paris"),
        // Of no probe.
        answer(7, "", "Rome"),
    ];
    let found = named(&Case { answers, ..case("a", table) });
    let of = |name: &str| found.get(&format!("generate {name}")).copied();
    assert_eq!((of("rewrite_exact"), of("rewrite_contained")), (Some(1.0), Some(1.0)));
    assert_eq!((of("rephrase_exact"), of("rephrase_contained")), (Some(0.0), Some(0.5)));
    assert_eq!((of("portability_exact"), of("locality_same")), (None, Some(0.5)));
}

#[test]
fn every_value_is_described() {
    let table = vec![
        against(row(Kind::Rewrite, None, &[1], &[1], &[1]), &[-1.0], &[-2.0]),
        against(row(Kind::Rephrase, None, &[1], &[1], &[1]), &[-1.0], &[-2.0]),
        against(row(Kind::Locality, Some("near"), &[1], &[1], &[1]), &[-1.0], &[-2.0]),
        row(Kind::Portability, Some("alias"), &[1], &[1], &[1]),
        ProbeRow {
            described: true,
            ..against(row(Kind::Portability, Some("reply"), &[1], &[1], &[1]), &[-1.0], &[-2.0])
        },
        claim(true, true),
    ];
    let answers = (0..4).map(|row| FreeAnswer { row, before: "a".into(), after: "a".into() }).collect();
    let full = Case {
        answers,
        texts: vec![FreeText { prompt: "It is".into(), after: "so".into(), to_own_end: Some("so".into()) }],
        memory_before_bytes: Some(0),
        essence: Some([1.0, 1.0]),
        perplexity: Some([1.0, 1.0]),
        completion: true,
        seconds: BTreeMap::from([("edit".into(), 1.0), ("evaluation".into(), 2.0)]),
        ..case("a", table)
    };
    let figures = aggregate(&measure_all(&[full], None), 0);
    for figure in &figures {
        assert!(!about(figure.protocol, &figure.name).what.is_empty(), "{}", figure.name);
        assert_eq!(figure.cases, 1, "{}", figure.name);
        // One case says next to nothing of others: of what is no share nothing at all.
        let bounded = matches!(about(figure.protocol, &figure.name).unit, Unit::Share | Unit::Difference);
        let width = figure.high.zip(figure.low).map(|(high, low)| high - low);
        assert_eq!(width.is_some_and(|width| width > 0.7), bounded, "{figure:?}");
        assert_eq!(width.is_some(), bounded, "{figure:?}");
    }
    let of = |protocol| figures.iter().filter(|figure| figure.protocol == protocol).count();
    assert_eq!(Protocol::ALL.map(of), [13, 6, 10, 11, 4, 1, 3, 0, 0, 0, 7]);
}

#[test]
fn the_reference_score_is_the_cosine_of_tf_idf() {
    let text = |prompt: &str, after: &str| FreeText { prompt: prompt.into(), after: after.into(), to_own_end: None };
    let wine = Case { texts: vec![text("Red", "wine, a WINE")], ..case("a", vec![]) };
    let own = r#"{"target": "Rome", "relation_id": "P1", "texts": ["red wine", "red cheese"]}
        {"target": "Oslo", "texts": ["red fish"]}"#;
    let rome = r#"[{"relation_id": "P1", "target_id": "Q220", "samples": [{"name": "x", "text": "red wine"},
        {"name": "y", "text": "red cheese"}]}, {"relation_id": "P1", "target_id": "Q585", "samples": [{"text": "red fish"}]}]"#;
    let names = [("Q220".to_owned(), "Rome".to_owned()), ("Q585".to_owned(), "Oslo".to_owned())].into();
    // "red" is in all three texts, the others in one of them each; "a" is too short to be a word.
    let idf = (4.0f64 / 2.0).ln() + 1.0;
    let wanted = (2.0 + 2.0 * idf * idf) / ((1.0 + 4.0 * idf * idf).sqrt() * (4.0 + 2.0 * idf * idf).sqrt());
    for snippets in [Snippets::parse(own, &BTreeMap::new()).unwrap(), Snippets::parse(rome, &names).unwrap()] {
        close(reference_score(&wine, &snippets).unwrap(), wanted);
        assert_eq!(reference_score(&Case { texts: vec![text("", "beer")], ..wine.clone() }, &snippets), Some(0.0));
        assert_eq!(reference_score(&Case { texts: vec![], ..wine.clone() }, &snippets), None);
        assert_eq!(snippets.texts(Some("P2"), "Rome").count(), 0);
        let measured = measure(&wine, Some(&snippets));
        assert_eq!(measured.values.iter().filter(|value| value.name == "reference_score").count(), 1);
    }
    assert!(Snippets::parse(rome, &BTreeMap::new()).is_err());
    assert!(Snippets::parse("{", &BTreeMap::new()).is_err());
}

/// A claim, answered rightly or not.
fn claim(label: bool, right: bool) -> ProbeRow {
    let own = if right { -1.0 } else { -2.0 };
    let mut row = against(row(Kind::Rewrite, None, &[1], &[1], &[1]), &[own], &[-1.5]);
    let rival = row.rival.as_mut().unwrap();
    (row.target, rival.target) = if label { ("True".into(), "False".into()) } else { ("False".into(), "True".into()) };
    row
}

#[test]
fn score_and_balanced_accuracy_are_made_of_means_and_sums() {
    let cases: Vec<Measured> = [(1.0, 0.5, 0.8), (0.0, 0.5, 0.4), (1.0, 0.2, 0.3)]
        .iter()
        .enumerate()
        .map(|(id, &(e, p, n))| numbers(&id.to_string(), &[("efficacy", e), ("paraphrase", p), ("neighborhood", n)]))
        .collect();
    let figures = aggregate(&cases, 0);
    assert_eq!(figures[0].name, "score");
    close(figures[0].mean, 3.0 / (1.0 / (2.0 / 3.0) + 1.0 / 0.4 + 1.0 / 0.5));
    assert!(figures[0].low.unwrap() < figures[0].mean && figures[0].mean < figures[0].high.unwrap());
    // A mean of zero makes the score zero.
    let nothing = numbers("x", &[("efficacy", 0.0), ("paraphrase", 1.0), ("neighborhood", 1.0)]);
    assert_eq!(aggregate(&[nothing], 0)[0].mean, 0.0);

    // Three of four "True" and one of two "False", over cases of unequal size.
    let claims = [
        case("a", vec![claim(true, true), claim(true, true), claim(false, true)]),
        case("b", vec![claim(true, true), claim(true, false), claim(false, false)]),
    ];
    let figures = aggregate(&measure_all(&claims, None), 0);
    let found = figures.iter().find(|figure| figure.protocol == Protocol::Balanced).unwrap();
    assert_eq!((found.name.as_str(), found.mean, found.cases), ("in_scope", 0.625, 2));
    let rows: Vec<ProbeRow> = claims.iter().flat_map(|case| case.rows.clone()).collect();
    assert_eq!(emend::evaluate::balanced(&rows, emend::evaluate::Side::After).in_scope, Some(0.625));
}

/// Expected values: SciPy 1.17.1, `stats.ttest_1samp(d, 0).pvalue`, `stats.ttest_rel(a, b).pvalue` and `stats.binomtest(k, n).pvalue`.
#[test]
fn p_values_are_scipys() {
    let p = |found: f64, wanted: f64| assert!((found / wanted - 1.0).abs() < 1e-9, "{found} {wanted}");
    p(t_test(&[0.31, -0.12, 0.25, 0.4, 0.05, 0.18, -0.02, 0.33]).unwrap(), 0.033440013021162944);
    let (a, b) = ([1.0, 2.5, 3.1, 0.2, 1.9], [0.8, 2.9, 2.0, 0.1, 1.1]);
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    p(t_test(&differences).unwrap(), 0.24692392892029988);
    assert_eq!(test(&differences).1, Test::T);

    let signs = |k: usize, n: usize| [vec![1.0; k], vec![-1.0; n - k], vec![0.0; 5]].concat();
    for (k, n, wanted) in [
        (1, 9, 0.0390625),
        (0, 6, 0.03125),
        (3, 10, 0.34375),
        (12, 20, 0.5034446716308594),
        (5, 10, 1.0),
        (200, 1000, 1.6449987355774717e-85),
    ] {
        assert_eq!(test(&signs(k, n)), (sign_test(&signs(k, n)), Test::Sign));
        p(sign_test(&signs(k, n)), wanted);
    }
    // Where nothing varies there is no t: signs decide.
    for (differences, wanted) in [(vec![0.5; 6], 0.03125), (vec![0.0; 6], 1.0), (vec![0.3], 1.0), (vec![], 1.0)] {
        assert_eq!(test(&differences).1, Test::Sign);
        p(test(&differences).0, wanted);
    }
}

#[test]
fn holm_multiplies_by_the_hypotheses_that_are_left() {
    let corrected = holm(&[0.04, 0.01, 0.03, 0.9]);
    [0.09, 0.04, 0.09, 0.9].into_iter().zip(corrected).for_each(|(wanted, found)| close(found, wanted));
    assert_eq!(holm(&[0.6, 0.7]), [1.0, 1.0]);
    assert!(holm(&[]).is_empty());
}

#[test]
fn two_methods_are_compared_on_the_cases_they_share() {
    let with = |id: &str, efficacy: f64, essence: f64| numbers(id, &[("efficacy", efficacy), ("essence", essence)]);
    let a = [with("3", 1.0, 5.0), with("1", 1.0, 2.0), with("2", 0.0, 3.0), with("only a", 1.0, 1.0)];
    let mut b = vec![with("1", 0.0, 1.0), with("2", 0.0, 2.5), with("3", 0.0, 3.0), with("only b", 1.0, 9.0)];
    b.push(Measured { failed: true, ..numbers("only a", &[]) });
    let found = paired(&a, &b, 0);
    let names: Vec<&str> = found.iter().map(|difference| difference.name.as_str()).collect();
    assert_eq!(names, ["efficacy", "essence"]);
    assert_eq!((found[0].cases, found[0].test), (3, Test::Sign));
    close(found[0].p, 0.5);
    close(found[0].mean, 2.0 / 3.0);
    assert_eq!((found[1].cases, found[1].test), (3, Test::T));
    close(found[1].mean, 3.5 / 3.0);
    let back = paired(&b, &a, 0);
    for (there, back) in found.iter().zip(&back) {
        close(there.mean, -back.mean);
        close(there.p, back.p);
        close(there.low.unwrap(), -back.high.unwrap());
    }
    assert!(paired(&a[..1], &b[..1], 0).is_empty());
}

#[test]
fn the_best_method_is_proven_only_beyond_chance() {
    let cases = |share: usize, seconds: f64| -> Vec<Measured> {
        let value = |name: &str, protocol, value| Value { protocol, name: name.into(), value };
        let one = |id: usize| {
            let success = f64::from(u8::from(id < share));
            let scores =
                ["efficacy", "paraphrase", "neighborhood"].map(|name| value(name, Protocol::Counterfact, success));
            let time = value("seconds/edit", Protocol::Efficiency, seconds + (id % 7) as f64 * 0.01 * seconds);
            let rank = value("rank", Protocol::Efficiency, 1.0);
            let values = scores.into_iter().chain([time, rank]).collect();
            Measured { values, ..numbers(&id.to_string(), &[]) }
        };
        (0..40).map(one).collect()
    };
    let measured = [("slow", cases(38, 3.0)), ("weak", cases(12, 1.0)), ("near", cases(36, 2.0))];
    let figures = measured.each_ref().map(|(_, cases)| aggregate(cases, 0));
    let methods: Vec<Method> =
        measured.iter().zip(&figures).map(|((name, cases), figures)| Method { name, figures, cases }).collect();
    let found = best(&methods, 0, &|_, _| true);
    let names: Vec<&str> = found.iter().map(|best| best.name.as_str()).collect();
    assert_eq!(names, ["score", "efficacy", "paraphrase", "neighborhood", "seconds/edit"]);
    for number in &found[..4] {
        assert_eq!(number.method, "slow");
        let [weak, near] = number.others.as_slice() else { panic!("{number:?}") };
        assert_eq!(
            (weak.method.as_str(), weak.proven, near.method.as_str(), near.proven),
            ("weak", true, "near", false)
        );
    }
    assert_eq!(found[0].others[0].difference.as_ref().unwrap().test, Test::SignFlip);
    // Two of two cases apart: 0.5 by signs, the largest of the three pairs' p-values and so left as it is.
    close(found[1].others[1].p.unwrap(), 0.5);
    // Fewer seconds are better.
    assert_eq!(about(Protocol::Efficiency, "seconds/edit").better, Better::Lower);
    assert_eq!(found[4].method, "weak");
    assert!(found[4].others.iter().all(|other| other.proven && other.difference.as_ref().unwrap().mean < 0.0));
}

/// One case proves nothing: of a harmonic mean neither.
#[test]
fn one_case_is_no_proof() {
    let of = |value: f64| [numbers("1", &[("efficacy", value), ("paraphrase", value), ("neighborhood", value)])];
    let difference = paired(&of(1.0), &of(0.01), 0).remove(0);
    assert_eq!((difference.name.as_str(), difference.test, difference.p), ("score", Test::SignFlip, 1.0));
}

/// Twelve equal editors: the best of them is chosen by the cases that test it.
#[test]
fn the_best_of_many_equal_editors_is_seldom_proven() {
    let draws: u32 = 200;
    let wrong = (0..draws).filter(|draw| {
        let editor = |name: u64| -> Vec<Measured> {
            // Shares that look drawn, of 20 cases.
            let share = |case: u64| {
                let bytes = blake3::hash(format!("{draw} {name} {case}").as_bytes());
                bytes.as_bytes()[..10].iter().filter(|byte| **byte < 154).count() as f64 / 10.0
            };
            (0..20).map(|case| numbers(&format!("{case:02}"), &[("paraphrase", share(case))])).collect()
        };
        let editors: Vec<Vec<Measured>> = (0..12).map(editor).collect();
        let figures: Vec<_> = editors.iter().map(|cases| aggregate(cases, 0)).collect();
        let names: Vec<String> = (0..12).map(|name| name.to_string()).collect();
        let methods = names.iter().zip(&figures).zip(&editors);
        let methods: Vec<Method> = methods.map(|((name, figures), cases)| Method { name, figures, cases }).collect();
        best(&methods, 0, &|_, _| true)[0].others.iter().any(|other| other.proven)
    });
    // 5 % and three standard deviations of so many draws; corrected for the best's pairs alone it was 15 %.
    let share = wrong.count() as f64 / f64::from(draws);
    assert!(share <= 0.05 + 3.0 * (0.05 * 0.95 / f64::from(draws)).sqrt(), "{share}");
}

#[test]
fn perplexity_is_that_of_scoring() {
    let model = emend::Edited::new(std::sync::Arc::new(model("gpt2-tiny", DType::F32)));
    let ids = Golden::open(fixture("gpt2-tiny").join("golden.safetensors")).ids();
    let texts: Vec<Continuation> =
        ids.iter().map(|ids| Continuation { ids: ids.clone(), prompt: 1, apart: false }).collect();
    let scored = score(&[&model], &texts).unwrap();
    let all: Vec<f64> =
        scored[0].iter().flat_map(|scored| scored.log_probabilities.iter().map(|&log| f64::from(log))).collect();
    let wanted = (-all.iter().sum::<f64>() / all.len() as f64).exp();
    let found = perplexity(&model, &ids).unwrap();
    assert!((found / wanted - 1.0).abs() < 1e-5, "{found} {wanted}");
    // A row of one token has nothing to predict.
    assert_eq!(perplexity(&model, &[ids, vec![vec![1]]].concat()).unwrap(), found);
    assert!(perplexity(&model, &[vec![1]]).is_err());

    let tokenizer = &model.base().tokenizer;
    let text = "The city of Lyon lies in France, and that of Oslo in Norway.".to_owned();
    let whole = tokenizer.encode(&text).unwrap();
    for length in 2..9 {
        let rows = windows(tokenizer, &text.clone().into(), length).unwrap();
        assert!(rows.iter().all(|row| (2..=length).contains(&row.len())));
        assert!(rows.windows(2).all(|pair| pair[0].last() == pair[1].first()));
        let predicted: Vec<u32> = rows.iter().flat_map(|row| row[1..].iter().copied()).collect();
        assert_eq!(predicted, whole[1..]);
    }
    assert!(windows(tokenizer, &text.into(), 1).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Texts that share a prompt, or go on from each other, or are there twice.
    #[test]
    fn a_score_depends_on_neither_company_nor_order(
        prompts in vec(vec(1u32..4, 1..4), 1..4),
        texts in vec((0usize..4, vec(1u32..4, 1..4)), 1..12),
    ) {
        let model = emend::Edited::new(std::sync::Arc::new(model("gpt2-tiny", DType::F32)));
        let text = |(prompt, target): &(usize, Vec<u32>)| {
            let prompt = &prompts[prompt % prompts.len()];
            Continuation { ids: [prompt.clone(), target.clone()].concat(), prompt: prompt.len(), apart: false }
        };
        let texts: Vec<Continuation> = texts.iter().map(text).collect();
        let together = score(&[&model], &texts).unwrap().remove(0);
        let reversed: Vec<Continuation> = texts.iter().rev().cloned().collect();
        let reversed = score(&[&model], &reversed).unwrap().remove(0);
        prop_assert_eq!(together.len(), texts.len());
        for ((text, found), other) in texts.iter().zip(&together).zip(reversed.iter().rev()) {
            let alone = score(&[&model], std::slice::from_ref(text)).unwrap().remove(0).remove(0);
            for found in [found, other] {
                prop_assert_eq!(&found.target, &text.target());
                prop_assert_eq!(&found.argmax, &alone.argmax);
                for (a, b) in found.log_probabilities.iter().zip(&alone.log_probabilities) {
                    prop_assert!((a - b).abs() < 1e-4, "{} {}", a, b);
                }
            }
        }
    }
}

/// Any row, of targets of one to three tokens.
fn any_row() -> impl Strategy<Value = ProbeRow> {
    let tokens = || vec(0u32..4, 3);
    let logs = || vec(-4.0f32..0.0, 3);
    let kind = prop_oneof![Just(Kind::Rewrite), Just(Kind::Rephrase), Just(Kind::Locality), Just(Kind::Portability)];
    let class = prop_oneof![Just("near"), Just("far")];
    let claim = prop_oneof![Just(None), Just(Some(true)), Just(Some(false))];
    (kind, class, 1usize..4, (tokens(), tokens(), tokens()), (logs(), logs()), (any::<bool>(), any::<bool>()), claim)
        .prop_map(|(kind, class, n, (target, before, after), (own, other), (rival, described), claim)| {
            let class = matches!(kind, Kind::Locality | Kind::Portability).then_some(class);
            let plain = row(kind, class, &target[..n], &before[..n], &after[..n]);
            let mut made = if rival { against(plain, &own[..n], &other) } else { plain };
            made.described = described;
            if let (Some(label), Some(rival)) = (claim, made.rival.as_mut()) {
                let (right, wrong) = if label { ("True", "False") } else { ("False", "True") };
                (made.target, rival.target) = (right.into(), wrong.into());
            }
            made
        })
}

/// Cases of any rows, some of which failed.
fn any_cases() -> impl Strategy<Value = Vec<Case>> {
    let one = (vec(any_row(), 0..6), 0.0f64..9.0, prop::bool::weighted(0.1));
    vec(one, 1..12).prop_map(|cases| {
        let one = |(id, (rows, seconds, broken)): (usize, (Vec<ProbeRow>, f64, bool))| Case {
            seconds: BTreeMap::from([("edit".into(), seconds)]),
            error: broken.then(|| "broken".into()),
            ..case(&id.to_string(), rows)
        };
        cases.into_iter().enumerate().map(one).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn values_do_not_depend_on_the_order_of_rows(
        (rows, shuffled) in vec(any_row(), 0..12).prop_flat_map(|rows| (Just(rows.clone()), Just(rows).prop_shuffle()))
    ) {
        let (found, other) = (named(&case("a", rows)), named(&case("a", shuffled)));
        prop_assert_eq!(found.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
        for (name, value) in &found {
            prop_assert!((value - other[name]).abs() < 1e-9, "{}", name);
        }
    }

    #[test]
    fn figures_do_not_depend_on_the_order_of_cases_and_lie_in_their_intervals(
        (cases, shuffled) in any_cases().prop_flat_map(|cases| (Just(cases.clone()), Just(cases).prop_shuffle())),
        seed in 0u64..5,
    ) {
        let figures = aggregate(&measure_all(&cases, None), seed);
        prop_assert_eq!(&figures, &aggregate(&measure_all(&shuffled, None), seed));
        let sound = cases.len() - failed(&cases);
        for figure in &figures {
            let inside = |(low, high): (f64, f64)| low <= figure.mean && figure.mean <= high;
            prop_assert!(figure.low.zip(figure.high).is_none_or(inside), "{:?}", figure);
            prop_assert!(0 < figure.cases && figure.cases <= sound);
        }
        // A method compared with itself.
        let measured = measure_all(&cases, None);
        for difference in paired(&measured, &measured, seed) {
            prop_assert_eq!((difference.mean, difference.p), (0.0, 1.0));
            prop_assert_eq!(difference.low, difference.high.map(|high| -high));
        }
    }

    #[test]
    fn equal_values_are_no_certainty(value in 0.01f64..0.99, count in 1usize..40) {
        let parts = [("efficacy", value), ("paraphrase", value), ("neighborhood", value)];
        let cases: Vec<Measured> = (0..count).map(|id| numbers(&id.to_string(), &parts)).collect();
        let figures = aggregate(&cases, 1);
        prop_assert_eq!(figures.len(), 4);
        for figure in figures {
            let (low, high) = (figure.low.unwrap(), figure.high.unwrap());
            prop_assert!((figure.mean - value).abs() < 1e-12);
            let unseen = 1.96 * 1.96 / (count as f64 + 1.96 * 1.96);
            prop_assert!((low - value * (1.0 - unseen)).abs() < 1e-9 && (high - value - (1.0 - value) * unseen).abs() < 1e-9);
        }
    }
}
