//! Metrics on a table computed by hand.

use emend::edit::likelihood::Scored;
use emend::evaluate::{Balanced, Kind, ProbeRow, Rival, Sentiment, Side, balanced, counterfact, sentiment, summarize};

fn scored(target: &[u32], argmax: &[u32]) -> Scored {
    Scored { target: target.to_vec(), log_probabilities: vec![-0.5; target.len()], argmax: argmax.to_vec(), text: None }
}

fn row(record: usize, kind: Kind, class: Option<&str>, target: &[u32], before: &[u32], after: &[u32]) -> ProbeRow {
    ProbeRow {
        record,
        described: false,
        kind,
        class: class.map(str::to_owned),
        prompt: String::new(),
        target: String::new(),
        given: true,
        aliases: vec![],
        test: None,
        separator: None,
        lowered: false,
        apart: false,
        before: scored(target, before),
        after: scored(target, after),
        rival: None,
    }
}

#[test]
fn figures_are_those_computed_by_hand() {
    let near = Some("near");
    let far = Some("far");
    let table = vec![
        // Whole target right; and one of two tokens right, which is no success.
        row(0, Kind::Rewrite, None, &[1, 2], &[9, 9], &[1, 2]),
        row(1, Kind::Rewrite, None, &[1, 2], &[9, 9], &[1, 9]),
        row(0, Kind::Rephrase, None, &[1], &[9], &[1]),
        row(0, Kind::Rephrase, None, &[1], &[9], &[9]),
        row(1, Kind::Rephrase, None, &[1], &[9], &[9]),
        row(1, Kind::Rephrase, None, &[1], &[9], &[9]),
        // Right and kept; right and lost; wrong, and wrong in another way; wrong as before.
        row(0, Kind::Locality, near, &[3, 4], &[3, 4], &[3, 4]),
        row(0, Kind::Locality, near, &[3, 4], &[3, 4], &[3, 5]),
        row(1, Kind::Locality, far, &[3], &[8], &[7]),
        row(1, Kind::Locality, far, &[3], &[8], &[8]),
    ];
    let summary = summarize(&table);
    assert_eq!(summary.edits, 2);
    assert_eq!(summary.edit_success, Some(0.5));
    assert_eq!(summary.generalization, Some(0.25));
    assert_eq!(summary.locality, Some(0.5));
    assert_eq!(summary.drawdown, Some(0.25));
    assert_eq!(summary.locality_by_class["near"], 0.5);
    assert_eq!(summary.drawdown_by_class["near"], 0.5);
    assert_eq!(summary.drawdown_by_class["far"], 0.0);

    let mut shuffled = table.clone();
    shuffled.reverse();
    assert_eq!(summarize(&shuffled), summary);
    assert_eq!(summarize(&[]).edit_success, None);
}

/// CounterFact's attribute prompts ask for the new answer: they have figures of their own, beside the headline.
#[test]
fn attribute_prompts_stand_beside_the_headline() {
    let table = vec![
        row(0, Kind::Locality, Some("neighborhood"), &[3], &[3], &[3]),
        row(0, Kind::Locality, Some("attribute"), &[4], &[4], &[5]),
    ];
    let summary = summarize(&table);
    assert_eq!((summary.locality, summary.drawdown), (Some(1.0), Some(0.0)));
    assert_eq!((summary.locality_by_class["attribute"], summary.drawdown_by_class["attribute"]), (0.0, 1.0));
}

/// Of an answer against itself nobody can say which is likelier.
#[test]
fn an_answer_is_not_up_against_itself() {
    let same = against(0, Kind::Locality, ["Rome", " Rome"], [1.0, 1.0], [1.0, 1.0]);
    let other = against(0, Kind::Locality, ["Rome", "Oslo"], [1.0, 2.0], [1.0, 2.0]);
    assert_eq!(counterfact(std::slice::from_ref(&same), Side::After).neighborhood, None);
    assert_eq!(counterfact(&[same, other], Side::After).neighborhood, Some(1.0));
}

#[test]
fn nll_is_a_mean_and_probability_a_product() {
    let scored = Scored { target: vec![1, 2], log_probabilities: vec![-1.0, -3.0], argmax: vec![1, 2], text: None };
    assert!((scored.nll() - 2.0).abs() < 1e-12);
    assert!((scored.probability() - (-4.0f64).exp()).abs() < 1e-12);
}

/// A row by the mean NLL a token of its target and its rival, before and after.
fn against(record: usize, kind: Kind, [target, rival]: [&str; 2], before: [f32; 2], after: [f32; 2]) -> ProbeRow {
    let scored = |nll: f32| Scored {
        target: vec![1, 2],
        log_probabilities: vec![0.0, -2.0 * nll],
        argmax: vec![1, 2],
        text: None,
    };
    let rival = Rival { target: rival.into(), before: scored(before[1]), after: scored(after[1]) };
    ProbeRow {
        target: target.into(),
        before: scored(before[0]),
        after: scored(after[0]),
        rival: Some(rival),
        ..row(record, kind, None, &[1], &[1], &[1])
    }
}

#[test]
fn balanced_accuracy_is_a_mean_over_both_labels() {
    let (yes, no) = (["True", "False"], ["false", " TRUE"]);
    let (right, wrong, tie) = ([1.0, 2.0], [2.0, 1.0], [1.0, 1.0]);
    let table = vec![
        row(0, Kind::Rewrite, None, &[1], &[1], &[1]),
        against(0, Kind::Rewrite, yes, wrong, right),
        against(0, Kind::Rephrase, yes, wrong, right),
        against(0, Kind::Portability, yes, wrong, right),
        against(1, Kind::Portability, yes, wrong, tie),
        against(1, Kind::Portability, no, right, wrong),
        against(1, Kind::Portability, no, right, right),
        // Neither a label, nor the two of them: left out.
        against(1, Kind::Portability, ["Rome", "False"], right, wrong),
        against(1, Kind::Portability, ["True", "true"], right, wrong),
        against(0, Kind::Locality, no, right, wrong),
        against(0, Kind::Locality, no, right, right),
    ];
    let found = balanced(&table, Side::Before);
    assert_eq!(found, Balanced { in_scope: Some(0.5), out_of_scope: Some(1.0) });
    // (3/4 + 1/2) / 2; and a label that does not occur has no share.
    let found = balanced(&table, Side::After);
    assert_eq!(found, Balanced { in_scope: Some(0.625), out_of_scope: Some(0.5) });
    assert_eq!(balanced(&table[..1], Side::After), Balanced::default());
}

#[test]
fn sentiment_pools_the_tokens_of_all_replies_of_an_edit() {
    let reply = |record, kind, before, after| ProbeRow {
        described: true,
        ..against(record, kind, ["Lovely.", "Dreadful."], before, after)
    };
    // A right reply of one token beside one of two: three tokens together.
    let mut short = reply(0, Kind::Portability, [2.0, 2.0], [3.0, 3.0]);
    for (scored, log) in [(&mut short.before, -2.0), (&mut short.after, -3.0)] {
        (scored.target, scored.log_probabilities, scored.argmax) = (vec![1], vec![log], vec![1]);
    }
    let table = vec![
        reply(0, Kind::Rewrite, [2.0, 2.0], [1.0, 3.0]),
        short,
        // Both likelier: no more than 1.
        reply(1, Kind::Rewrite, [4.0, 3.0], [1.0, 1.0]),
        // None of these counts: out of scope, a claim, an edit without a descriptor.
        reply(0, Kind::Locality, [1.0, 1.0], [9.0, 1.0]),
        ProbeRow { described: true, ..against(0, Kind::Portability, ["True", "False"], [1.0, 1.0], [9.0, 1.0]) },
        against(2, Kind::Rewrite, ["Rome", "Oslo"], [1.0, 1.0], [9.0, 1.0]),
    ];
    let close = |found: Option<f64>, wanted: f64| assert!((found.unwrap() - wanted).abs() < 1e-6, "{found:?} {wanted}");
    let sigma = |x: f64| 1.0 / (1.0 + (-x).exp());
    let after = sentiment(&table, Side::After);
    // l⁺ = −(2·1 + 3)/3 after, −2 before; l⁻ = −3.
    let (right, wrong) = (-5.0 / 3.0, -3.0);
    close(after.sentiment, 0.5 * (sigma(right - wrong) + 0.5));
    close(after.topic, 1.0);
    close(after.success, 0.5 * (sigma(right - wrong) + 0.5));
    let before = sentiment(&table, Side::Before);
    close(before.sentiment, 0.5 * (0.5 + sigma(-1.0)));
    close(before.topic, 1.0);
    assert_eq!(before.success, before.sentiment);
    assert_eq!(sentiment(&table[3..], Side::After), Sentiment::default());
}

/// What makes the wrong reply unlikely is asked for; what makes the right one unlikely is not.
#[test]
fn only_the_right_replies_keep_to_the_topic() {
    let reply = |before, after| {
        let row = against(0, Kind::Rewrite, ["Lovely.", "Dreadful."], before, after);
        sentiment(&[ProbeRow { described: true, ..row }], Side::After)
    };
    let suppressed = reply([0.001, 8.0], [0.0, 30.0]);
    assert!(suppressed.topic == Some(1.0) && suppressed.success.unwrap() > 0.999, "{suppressed:?}");
    let silenced = reply([1.0, 8.0], [3.0, 8.0]);
    assert!((silenced.topic.unwrap() - (-2.0f64).exp()).abs() < 1e-6, "{silenced:?}");
}

#[test]
fn counterfact_means_over_prompts_and_then_over_edits() {
    let row = |record, kind, before, after| against(record, kind, ["new", "old"], before, after);
    let table = vec![
        row(0, Kind::Rewrite, [5.0, 1.0], [0.1, 3.0]),
        row(1, Kind::Rewrite, [4.0, 1.0], [2.0, 2.0]),
        row(0, Kind::Rephrase, [5.0, 1.0], [1.0, 2.0]),
        row(0, Kind::Rephrase, [1.0, 2.0], [1.0, 2.0]),
        row(1, Kind::Rephrase, [5.0, 1.0], [3.0, 2.0]),
        row(0, Kind::Locality, [1.0, 2.0], [2.0, 1.0]),
        row(1, Kind::Locality, [1.0, 2.0], [1.0, 2.0]),
        row(1, Kind::Locality, [1.0, 2.0], [1.0, 2.0]),
        row(1, Kind::Locality, [1.0, 2.0], [1.0, 2.0]),
    ];
    let (before, after) = (counterfact(&table, Side::Before), counterfact(&table, Side::After));
    // A tie is no success.
    assert_eq!((before.efficacy, after.efficacy), (Some(0.0), Some(0.5)));
    assert_eq!((before.paraphrase, after.paraphrase), (Some(0.25), Some(0.5)));
    assert_eq!((before.neighborhood, after.neighborhood), (Some(1.0), Some(0.5)));
    let close = |found: Option<f64>, wanted: f64| assert!((found.unwrap() - wanted).abs() < 1e-6, "{found:?} {wanted}");
    close(after.score, 0.5);
    close(before.score, 0.0);
    close(after.efficacy_magnitude, 0.5 * ((-0.1f64).exp() - (-3.0f64).exp()));
    assert_eq!(counterfact(&[], Side::After).efficacy, None);
}
