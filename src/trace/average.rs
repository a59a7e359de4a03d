//! Traces of many questions: the mean effect by what a token is to its question, and by layer (Meng et al., 2022, figure 2).

use std::ops::Range;

use serde_json::{Value, json};
use statrs::distribution::{ContinuousCDF, StudentsT};

use super::result::{deviation, mean};

/// What a token is to its question. A subject of one token has a last one only; what stands before the subject has no role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The subject's first token, where it has several.
    FirstSubject,
    /// Those between its first and its last.
    MiddleSubject,
    /// Its last.
    LastSubject,
    /// The token behind the subject.
    FirstSubsequent,
    /// Those behind that.
    Further,
    /// The prompt's last.
    Last,
}

impl Role {
    /// From the beginning of a prompt to its end.
    pub const ALL: [Role; 6] =
        [Role::FirstSubject, Role::MiddleSubject, Role::LastSubject, Role::FirstSubsequent, Role::Further, Role::Last];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Role::FirstSubject => "first subject token",
            Role::MiddleSubject => "middle subject tokens",
            Role::LastSubject => "last subject token",
            Role::FirstSubsequent => "first subsequent token",
            Role::Further => "further tokens",
            Role::Last => "last token",
        }
    }

    /// The roles of a question's tokens, of which `subject` are the subject's.
    pub fn all_of(tokens: usize, subject: &Range<usize>) -> Vec<Option<Role>> {
        let role = |token: usize| match token {
            token if token < subject.start => None,
            token if token + 1 == subject.end => Some(Role::LastSubject),
            token if token == subject.start => Some(Role::FirstSubject),
            token if token < subject.end => Some(Role::MiddleSubject),
            token if token + 1 == tokens => Some(Role::Last),
            token if token == subject.end => Some(Role::FirstSubsequent),
            _ => Some(Role::Further),
        };
        (0..tokens).map(role).collect()
    }
}

/// A mean with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// Its interval, by Student's t; nothing of fewer than two numbers.
    pub interval: Option<(f64, f64)>,
    /// Of how many numbers.
    pub count: usize,
}

impl Mean {
    /// Of numbers; nothing of none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let count = values.len();
        let centre = (count > 0).then(|| mean(values))?;
        let half = StudentsT::new(0.0, 1.0, count as f64 - 1.0).ok().filter(|_| count > 1);
        let half = half.map(|t| t.inverse_cdf(0.975) * deviation(values) / (count as f64).sqrt());
        Some(Mean { mean: centre, interval: half.map(|half| (centre - half, centre + half)), count })
    }

    /// With its interval, for people.
    pub fn shown(&self) -> String {
        match self.interval {
            Some((low, high)) => format!("{:.3} (95 %: {low:.3} to {high:.3})", self.mean),
            None => format!("{:.3}", self.mean),
        }
    }

    /// As JSON.
    pub fn document(self) -> Value {
        json!({ "mean": self.mean, "interval": self.interval, "facts": self.count })
    }
}

/// Mean effects of one kind of map: a row for each role that some fact has, a number a layer.
#[derive(Debug, Clone)]
pub struct Averages {
    /// As in the facts' documents: "state", or "mlp" and "attention" with their window.
    pub name: String,
    /// Window of layers; nothing for block outputs.
    pub window: Option<usize>,
    /// By role.
    pub rows: Vec<(Role, Vec<Mean>)>,
}

/// The effects of one fact's map, `[tokens][layers]`, with the fact's tokens' roles.
type Effects = (Vec<Option<Role>>, Vec<Vec<f64>>);

impl Averages {
    /// Of the documents that [`Trace::document`](super::result::Trace::document) gives.
    pub fn all_of(documents: &[Value]) -> Vec<Self> {
        let mut names: Vec<(String, Option<usize>)> = vec![];
        for document in documents {
            let windows = |name: &str| -> Vec<(String, Option<usize>)> {
                let object = document[name].as_object();
                object.into_iter().flat_map(|of| of.keys()).map(|width| (name.to_owned(), width.parse().ok())).collect()
            };
            let state = document["state"].is_object().then(|| ("state".to_owned(), None));
            for name in state.into_iter().chain(windows("mlp")).chain(windows("attention")) {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        names.into_iter().map(|(name, window)| Averages::of(documents, name, window)).collect()
    }

    fn of(documents: &[Value], name: String, window: Option<usize>) -> Self {
        let facts: Vec<Effects> = documents.iter().filter_map(|document| effects(document, &name, window)).collect();
        let layers = facts.iter().filter_map(|(_, effects)| effects.first()).map(Vec::len).max().unwrap_or(0);
        let rows = Role::ALL.into_iter().filter_map(|role| {
            let each = (0..layers).map(|layer| {
                let of_fact = |(roles, effects): &Effects| {
                    let own = roles.iter().zip(effects).filter(|(of, _)| **of == Some(role));
                    let own: Vec<f64> = own.filter_map(|(_, row)| row.get(layer).copied()).collect();
                    (!own.is_empty()).then(|| mean(&own))
                };
                Mean::of(&facts.iter().filter_map(of_fact).collect::<Vec<f64>>())
            });
            Some((role, each.collect::<Option<Vec<Mean>>>()?))
        });
        Averages { rows: rows.collect(), name, window }
    }

    /// The role and the layer of the largest mean effect, among some roles.
    pub fn largest(&self, among: impl Fn(Role) -> bool) -> Option<(Role, usize, Mean)> {
        let rows = self.rows.iter().filter(|(role, _)| among(*role));
        let cells = rows.flat_map(|(role, means)| means.iter().enumerate().map(|(layer, mean)| (*role, layer, *mean)));
        cells.max_by(|(.., a), (.., b)| a.mean.total_cmp(&b.mean))
    }

    /// As JSON.
    pub fn document(&self) -> Value {
        let rows = self.rows.iter().map(|(role, means)| {
            (role.name().to_owned(), Value::Array(means.iter().map(|mean| mean.document()).collect()))
        });
        json!({ "of": self.name, "window": self.window, "effect": rows.collect::<serde_json::Map<_, _>>() })
    }
}

/// The effects in a fact's document.
fn effects(document: &Value, name: &str, window: Option<usize>) -> Option<Effects> {
    let table = match window {
        None => &document[name],
        Some(width) => &document[name][width.to_string()],
    };
    let roles = document["roles"].as_array()?.iter().map(|role| {
        let role = role.as_str()?;
        Role::ALL.into_iter().find(|known| known.name() == role)
    });
    let row = |row: &Value| row.as_array().map(|row| row.iter().filter_map(Value::as_f64).collect::<Vec<f64>>());
    let effects = table["effect"].as_array()?.iter().map(row).collect::<Option<Vec<_>>>()?;
    Some((roles.collect(), effects))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_has_one_role() {
        use Role::{FirstSubject, FirstSubsequent, Further, Last, LastSubject, MiddleSubject};
        let of = |tokens, subject: Range<usize>| Role::all_of(tokens, &subject);
        assert_eq!(
            of(7, 1..4),
            [
                None,
                Some(FirstSubject),
                Some(MiddleSubject),
                Some(LastSubject),
                Some(FirstSubsequent),
                Some(Further),
                Some(Last)
            ]
        );
        assert_eq!(of(3, 0..1), [Some(LastSubject), Some(FirstSubsequent), Some(Last)]);
        // Where the prompt ends with the subject, or a token behind it, the last one counts.
        assert_eq!(of(2, 0..2), [Some(FirstSubject), Some(LastSubject)]);
        assert_eq!(of(2, 0..1), [Some(LastSubject), Some(Last)]);
    }

    #[test]
    fn means_are_over_facts() {
        let fact = |effect: [f64; 2]| json!({ "roles": ["last subject token", "last token", null], "state": { "effect": [effect, effect, [9.0, 9.0]] } });
        let averages = Averages::all_of(&[fact([0.1, 0.3]), fact([0.3, 0.5])]);
        assert_eq!(averages.len(), 1);
        let (role, means) = &averages[0].rows[0];
        assert_eq!((*role, averages[0].rows.len()), (Role::LastSubject, 2));
        assert!((means[0].mean - 0.2).abs() < 1e-12 && means[0].count == 2);
        // t of one degree of freedom is 12.706, the standard error 0.1.
        let (low, high) = means[0].interval.unwrap();
        assert!((high - 0.2 - 1.2706).abs() < 1e-3 && (0.2 - low - 1.2706).abs() < 1e-3);
        assert_eq!(averages[0].largest(|_| true).map(|(_, layer, _)| layer), Some(1));
    }
}
