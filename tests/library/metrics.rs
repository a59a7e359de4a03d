//! Metrics on a table computed by hand.

use emend::edit::score::Scored;
use emend::evaluate::{Kind, ProbeRow, Rival, Side, counterfact, summarize};

fn scored(target: &[u32], argmax: &[u32]) -> Scored {
    Scored { target: target.to_vec(), log_probabilities: vec![-0.5; target.len()], argmax: argmax.to_vec() }
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

#[test]
fn nll_is_a_mean_and_probability_a_product() {
    let scored = Scored { target: vec![1, 2], log_probabilities: vec![-1.0, -3.0], argmax: vec![1, 2] };
    assert!((scored.nll() - 2.0).abs() < 1e-12);
    assert!((scored.probability() - (-4.0f64).exp()).abs() < 1e-12);
}

#[test]
fn counterfact_means_over_prompts_and_then_over_edits() {
    // NLL a token of right and wrong answer, before and after.
    let row = |record, kind, before: [f32; 2], after: [f32; 2]| {
        let scored =
            |nll: f32| Scored { target: vec![1, 2], log_probabilities: vec![0.0, -2.0 * nll], argmax: vec![1, 2] };
        let mut row = row(record, kind, None, &[1], &[1], &[1]);
        (row.before, row.after) = (scored(before[0]), scored(after[0]));
        row.rival = Some(Rival { target: String::new(), before: scored(before[1]), after: scored(after[1]) });
        row
    };
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
