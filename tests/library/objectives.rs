//! Objectives of an edit: a target that is to become less likely, or likelier under noise. Their gradients against finite differences in 64 bits.

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData, activation};
use emend::apply::fine_tuning::FineTuning;
use emend::apply::lookup::{Lookup, LookupSettings};
use emend::apply::memit::Memit;
use emend::apply::rome::Rome;
use emend::apply::{Editor, Prepared};
use emend::data::objective::{Hidden, Objective};
use emend::data::record::EditRecord;
use emend::edit::likelihood::target_log_probabilities;
use emend::edit::noise::{self, Noise};
use emend::edit::score::score;
use emend::edit::{Change, Delta, Edit, EditRequest, Edited, PassChange, edited_by};
use emend::evaluate::problem::{Problem, is_known};
use emend::model::tap::{NoTap, Role, Weight};
use emend::model::tokenizer::Continuation;
use emend::model::tokens::Tokens;

use crate::common::{model, pocket, settings_of, values};

const SUBJECT: &str = "Ost";
const PROMPT: &str = "The river that runs through Ost is the";
/// Of several tokens.
const TARGET: &str = "seven old kings of Vell";
const HIDDEN: Hidden = Hidden { sigma: 0.3, draws: 3, seed: 5 };

fn request(prompt: &str, subject: &str, target: &str, objective: Objective) -> EditRequest {
    EditRequest { subject: Some(subject.into()), objective: Some(objective), ..EditRequest::new(prompt, target) }
}

fn prepared() -> Prepared {
    Prepared { statistics: None, seed: 0, progress: Box::new(|_| {}) }
}

/// p of the target a token, as the objective looks at it: of every draw where it looks under noise.
fn probabilities(model: &Edited, row: &Continuation, objective: Objective) -> Vec<f64> {
    let tokens = Tokens::new(vec![row.ids[..row.ids.len() - 1].to_vec()]);
    let reads: Vec<(usize, usize)> = row.reads().map(|cell| (0, cell)).collect();
    let of = |noise: Option<(usize, Tensor<2>)>| {
        let hidden = model.embed(&tokens, &mut Noise(vec![noise])).unwrap();
        let hidden = model.blocks(hidden, 0..model.layers(), tokens.span(), None, &mut NoTap).unwrap();
        let log = activation::log_softmax(model.head(hidden, &reads), 1);
        let log = values(target_log_probabilities(log, row.target()));
        (log.iter().sum::<f64>() / log.len() as f64).exp()
    };
    let Some(hidden) = objective.hidden() else { return vec![of(None)] };
    let (first, all) = Noise::of_subject(model, PROMPT, (SUBJECT, None), hidden, 0..hidden.draws).unwrap().unwrap();
    let [draws, tokens, width] = all.dims();
    let own = |draw| all.clone().slice([draw..draw + 1, 0..tokens, 0..width]).squeeze_dim::<2>(0);
    (0..draws).map(|draw| of(Some((first, own(draw))))).collect()
}

#[test]
fn a_step_of_fine_tuning_goes_down_each_objective() {
    let base = Edited::new(Arc::new(model("gpt2-tiny", DType::F64)));
    let at = Weight::decoder(1, Role::MlpDown);
    for objective in [Objective::Raise, Objective::Lower, Objective::RaiseUnderNoise(HIDDEN)] {
        let settings =
            "layers = [1]\nsteps = 1\nbiases = false\nearly_stop = 0.0\noptimizer = \"sgd\"\nlearning_rate = 1.0";
        let tuning = FineTuning::new(settings_of(settings), prepared(), vec![]).unwrap();
        let request = request(PROMPT, SUBJECT, TARGET, objective);
        let row = request.row(&base.base().tokenizer).unwrap();
        let edit = edited_by(&tuning, &base, &[request]).unwrap();
        let Change::Pass(change) = &edit.change else { unreachable!() };
        let (step, shape) = (values(change.matrices[&at].dense()), change.matrices[&at].shape());
        let loss = |model: &Edited| {
            let of = probabilities(model, &row, objective);
            let each = of.iter().map(|p| if objective == Objective::Lower { *p } else { -p.ln() });
            each.sum::<f64>() / of.len() as f64
        };
        let mut order: Vec<usize> = (0..step.len()).collect();
        order.sort_by(|&a, &b| step[b].abs().total_cmp(&step[a].abs()));
        for &place in &order[..3] {
            let moved = |size: f64| {
                let mut delta = vec![0.0; step.len()];
                delta[place] = size;
                let delta = Tensor::<2>::from_data(TensorData::new(delta, shape), (&Device::flex(), DType::F64));
                let change = PassChange { matrices: [(at, Delta::Dense(delta))].into(), ..Default::default() };
                loss(&base.with_change(&change).unwrap())
            };
            let size = 1e-5;
            let derivative = (moved(size) - moved(-size)) / (2.0 * size);
            let apart = (derivative + step[place]).abs() / step[place].abs();
            assert!(apart < 1e-6, "{objective:?}: {derivative} is not {}", -step[place]);
        }
    }
}

const LYON: [&str; 3] = ["The city of Lyon lies in", "Lyon", "France"];

/// A model's probability of an answer, and that under noise.
fn p(model: &Edited, objective: Objective) -> f64 {
    let row = EditRequest::new(LYON[0], LYON[2]).row(&model.base().tokenizer).unwrap();
    match objective.hidden() {
        None => score(&[model], &[row]).unwrap()[0][0].probability(),
        Some(hidden) => {
            let noise = Noise::of_subject(model, LYON[0], (LYON[1], None), hidden, 0..hidden.draws).unwrap().unwrap();
            noise::score(&[model], &row, &noise).unwrap()[0].probability()
        }
    }
}

fn editors() -> Vec<(&'static str, Box<dyn Editor>)> {
    let rome = "layers = [0]\nsteps = 40\nweight_decay = 1e-3\nclamp = 16.0\ncontext_templates = [\"{}\"]\nstatistics = \"none\"";
    let memit = "layers = [0, 1]\nsteps = 40\nweight_decay = 1e-3\nclamp = 16.0\ncovariance_weight = 1\ncontext_templates = [\"{}\"]\nstatistics = \"none\"";
    let tuning = "layers = [2]\nlearning_rate = 1e-3\nsteps = 40";
    vec![
        ("rome", Box::new(Rome::new(settings_of(rome), prepared()).unwrap())),
        ("memit", Box::new(Memit::new(settings_of(memit), prepared()).unwrap())),
        ("fine_tuning", Box::new(FineTuning::new(settings_of(tuning), prepared(), vec![]).unwrap())),
    ]
}

#[test]
fn editors_do_what_each_objective_asks() {
    let base = pocket();
    let forced = Objective::RaiseUnderNoise(Hidden { sigma: 0.5, draws: 4, seed: 1 });
    for (name, editor) in editors() {
        let after = |objective| -> Edited {
            let edit: Edit =
                edited_by(editor.as_ref(), &base, &[request(LYON[0], LYON[1], LYON[2], objective)]).unwrap();
            base.with(edit).unwrap()
        };
        let before = p(&base, Objective::Raise);
        let erased = p(&after(Objective::Lower), Objective::Raise);
        assert!(erased < 0.2 * before, "{name}: erased from {before} to {erased}");
        // Erased and amplified go opposite ways.
        let amplified = p(&after(Objective::Raise), Objective::Raise);
        assert!(amplified >= before - 1e-3 && amplified > erased, "{name}: amplified from {before} to {amplified}");
        let hidden = p(&base, forced);
        let shown = p(&after(forced), forced);
        assert!(hidden < 0.7 && shown > hidden + 0.2, "{name}: forced from {hidden} to {shown}");
    }
}

#[test]
fn an_objective_that_an_editor_does_not_take_is_refused() {
    let base = pocket();
    let lookup = Lookup::new(settings_of::<LookupSettings>("layer = 1\nradius = 0.1"), prepared()).unwrap();
    let erase = request(LYON[0], LYON[1], LYON[2], Objective::Lower);
    let error = edited_by(&lookup, &base, std::slice::from_ref(&erase)).map(drop).unwrap_err().to_string();
    assert!(error.contains("lookup") && error.contains("\"lower\"") && error.contains("rome"), "{error}");
    let raise = request("In which country is Oslo?", "Oslo", "Japan", Objective::Raise);
    let (_, rome) = editors().remove(0);
    let error = edited_by(rome.as_ref(), &base, &[erase, raise]).map(drop).unwrap_err().to_string();
    assert!(error.contains("another than that of the first"), "{error}");
}

#[test]
fn an_encoder_hides_no_subject() {
    let base = Edited::new(Arc::new(emend::Model::load("pocket-t5", &Device::flex(), DType::F32).unwrap()));
    let tuning = "layers = [0]\nlearning_rate = 1e-3\nsteps = 2";
    let tuning = FineTuning::new(settings_of(tuning), prepared(), vec![]).unwrap();
    let forced = request("In which country is Lyon?", "Lyon", "France", Objective::RaiseUnderNoise(HIDDEN));
    let error = edited_by(&tuning, &base, &[forced]).map(drop).unwrap_err().to_string();
    assert!(error.contains("encoder"), "{error}");
}

#[test]
fn problems_choose_their_targets() {
    let base = pocket();
    let fact = EditRecord {
        prompt: LYON[0].into(),
        subject: Some(LYON[1].into()),
        target_new: "Japan".into(),
        target_true: Some(LYON[2].into()),
        ..EditRecord::default()
    };
    assert!(is_known(&base, &fact, 0.02).unwrap());
    assert!(!is_known(&base, &EditRecord { target_true: Some("Japan".into()), ..fact.clone() }, 0.02).unwrap());
    let hidden = Hidden { sigma: 1.0, draws: 2, seed: 0 };
    let posed = |problem: Problem| problem.pose(&base, &fact, hidden).unwrap();
    let of = |problem: Problem| {
        let posed = posed(problem).unwrap();
        (posed.target_new, posed.objective.unwrap())
    };
    assert_eq!(of(Problem::Injection), ("Japan".into(), Objective::Raise));
    assert_eq!(of(Problem::Erasure), ("France".into(), Objective::Lower));
    assert_eq!(of(Problem::Amplification), ("France".into(), Objective::Raise));
    assert_eq!(of(Problem::Forcing), ("France".into(), Objective::RaiseUnderNoise(hidden)));
    let said = posed(Problem::Reversal).expect("noise changes what the model says");
    assert!(said.target_new != "France" && !said.target_new.is_empty(), "{}", said.target_new);
    // A fact whose answer is not known has nothing to erase.
    assert!(Problem::Erasure.pose(&base, &EditRecord { target_true: None, ..fact.clone() }, hidden).unwrap().is_none());
}
