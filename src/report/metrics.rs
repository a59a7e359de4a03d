//! The figures of a comparison's document by protocol and metric, with the unit that they are shown in.

use serde_json::Value;

use super::html::{list, order};

/// What stands beside a mean.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// Proven to be better than all others.
    Best,
    /// The best mean where that is not proven, and what is not proven to differ from it.
    Tie,
}

impl Mark {
    pub(super) fn word(self) -> &'static str {
        match self {
            Mark::Best => "best",
            Mark::Tie => "tie",
        }
    }
}

pub(super) struct Method<'a> {
    pub(super) name: &'a str,
    pub(super) label: &'a str,
}

pub(super) struct Protocol<'a> {
    pub(super) name: String,
    pub(super) about: String,
    /// Those that have a figure.
    pub(super) metrics: Vec<Metric<'a>>,
}

impl<'a> Protocol<'a> {
    /// The methods that have a figure, with their number.
    pub(super) fn methods(&self) -> Vec<(usize, &'a str)> {
        let Some(first) = self.metrics.first() else { return vec![] };
        let seen = |row: &usize| self.metrics.iter().any(|metric| metric.figures[*row].1.is_some());
        (0..first.figures.len()).filter(seen).map(|row| (row, first.figures[row].0.label)).collect()
    }
}

pub(super) struct Metric<'a> {
    pub(super) name: String,
    pub(super) unit: &'a str,
    pub(super) better: &'a str,
    /// By method.
    pub(super) figures: Vec<(Method<'a>, Option<&'a Value>)>,
    /// How many cases it was taken on, where that was not all of them.
    pub(super) cases: Option<u64>,
    pub(super) scale: Scale,
}

impl Metric<'_> {
    pub(super) fn words(&self) -> String {
        self.name.replace('_', " ")
    }

    /// Unit and the better way, behind a comma.
    pub(super) fn note(&self) -> String {
        let way = match self.better {
            "higher" => "↑",
            "lower" => "↓",
            _ => "",
        };
        let parts: Vec<&str> = [self.scale.name, way].into_iter().filter(|part| !part.is_empty()).collect();
        let parts = if parts.is_empty() { String::new() } else { format!(", {}", parts.join(" ")) };
        self.cases.map_or(parts.clone(), |cases| format!("{parts}, n={cases}"))
    }

    pub(super) fn figure(&self, row: usize) -> Option<&Value> {
        self.figures[row].1
    }

    pub(super) fn mean(&self, row: usize) -> String {
        self.figure(row).and_then(|figure| figure["mean"].as_f64()).map_or("–".into(), |mean| self.scale.format(mean))
    }

    /// How many cases a method has, where another one has more.
    pub(super) fn fewer(&self, row: usize) -> Option<u64> {
        let taken = |row: usize| self.figure(row).filter(|figure| figure["mean"].is_number())?["cases"].as_u64();
        let most = (0..self.figures.len()).filter_map(taken).max();
        taken(row).filter(|cases| Some(*cases) < most)
    }

    pub(super) fn interval(&self, row: usize) -> Option<String> {
        let figure = self.figure(row).filter(|figure| figure["mean"].is_number())?;
        let (low, high) = (figure["low"].as_f64()?, figure["high"].as_f64()?);
        let between = if high < 0.0 { " to " } else { "–" };
        Some(format!("{}{between}{}", self.scale.format(low), self.scale.format(high)))
    }

    pub(super) fn mark(&self, row: usize) -> Option<Mark> {
        let is = |figure: &Value, key: &str| figure[key].as_bool();
        let compared = |figure: &&Value| figure["mean"].is_number() && figure["proven"].is_boolean();
        let all = || self.figures.iter().filter_map(|(_, figure)| figure.filter(compared));
        let figure = self.figure(row).filter(|figure| figure["mean"].is_number())?;
        if !matches!(self.better, "higher" | "lower") || all().count() < 2 {
            return None;
        }
        let first = all().find(|figure| is(figure, "best") == Some(true))?;
        let best = is(figure, "best") == Some(true);
        if best && is(figure, "proven") == Some(true) {
            return Some(Mark::Best);
        }
        // Where the best is proven to be so nobody else is marked; elsewhere all that are not proven to be behind it.
        let open = is(first, "proven") != Some(true);
        (open && (best || is(figure, "proven") == Some(false))).then_some(Mark::Tie)
    }
}

/// One unit and one number of digits for all figures of a metric.
pub(super) struct Scale {
    pub(super) factor: f64,
    pub(super) name: &'static str,
    /// Digits behind the point; with an exponent where none are enough.
    pub(super) places: Option<usize>,
}

impl Scale {
    pub(super) fn for_values(unit: &str, values: impl Iterator<Item = f64>) -> Scale {
        let most = values.map(f64::abs).fold(0.0, f64::max);
        let of = |factor: f64, name| {
            let top = most * factor;
            let places = match top {
                _ if top >= 1000.0 => Some(0),
                _ if top >= 100.0 => Some(1),
                _ if top >= 1.0 => Some(2),
                _ if top >= 0.01 || top == 0.0 => Some(3),
                _ => None,
            };
            Scale { factor, name, places }
        };
        match unit {
            "share" => Scale { factor: 100.0, name: "%", places: Some(1) },
            "seconds" if most >= 7200.0 => of(1.0 / 3600.0, "h"),
            "seconds" if most > 0.0 && most < 0.1 => of(1000.0, "ms"),
            "seconds" => of(1.0, "s"),
            "bytes" => match [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")]
                .into_iter()
                .find(|(bits, _)| most >= f64::from(*bits).exp2())
            {
                Some((bits, name)) => of((-f64::from(bits)).exp2(), name),
                None => Scale { factor: 1.0, name: "B", places: Some(0) },
            },
            "bits" => of(1.0, "bits"),
            _ => of(1.0, ""),
        }
    }

    pub(super) fn format(&self, value: f64) -> String {
        let value = value * self.factor;
        let text = match self.places {
            Some(places) => format!("{value:.places$}"),
            None => format!("{value:.1e}"),
        };
        text.replace('-', "−")
    }
}

/// The protocols that have figures: those that are told, then those that only figures speak of.
pub(super) fn protocols(document: &Value) -> Vec<Protocol<'_>> {
    pub(super) fn place<T>(all: &mut Vec<T>, is: impl Fn(&T) -> bool, make: impl FnOnce() -> T) -> &mut T {
        let at = all.iter().position(is).unwrap_or_else(|| {
            all.push(make());
            all.len() - 1
        });
        &mut all[at]
    }
    let order = order(document);
    let named = |value: &Value| value.as_str().filter(|name| !name.is_empty()).unwrap_or("unnamed").to_owned();
    let methods = || {
        let label = |name: &str| {
            let told = list(&document["methods"]).iter().find(|method| method["name"] == *name);
            told.and_then(|method| method["label"].as_str()).filter(|label| !label.is_empty())
        };
        order.iter().map(move |&name| (Method { name, label: label(name).unwrap_or(name) }, None)).collect()
    };
    let mut all: Vec<Protocol<'_>> = vec![];
    let make = |name: &str, about: &Value| Protocol {
        name: name.to_owned(),
        about: about.as_str().unwrap_or_default().to_owned(),
        metrics: vec![],
    };
    let empty = |name: &str, unit, better| Metric {
        name: name.to_owned(),
        unit,
        better,
        figures: methods(),
        cases: None,
        scale: Scale { factor: 1.0, name: "", places: None },
    };
    for told in list(&document["protocols"]) {
        let name = named(&told["name"]);
        let protocol = place(&mut all, |protocol| protocol.name == name, || make(&name, &told["about"]));
        for metric in list(&told["metrics"]) {
            let name = named(&metric["name"]);
            let (unit, better) =
                (metric["unit"].as_str().unwrap_or("number"), metric["better"].as_str().unwrap_or("neither"));
            place(&mut protocol.metrics, |metric| metric.name == name, || empty(&name, unit, better));
        }
    }
    for figure in list(&document["figures"]) {
        let Some(row) = figure["method"].as_str().and_then(|name| order.iter().position(|method| *method == name))
        else {
            continue;
        };
        let (name, protocol) = (named(&figure["name"]), named(&figure["protocol"]));
        let protocol = place(&mut all, |other| other.name == protocol, || make(&protocol, &Value::Null));
        let metric = place(&mut protocol.metrics, |metric| metric.name == name, || empty(&name, "number", "neither"));
        metric.figures[row].1 = Some(figure);
    }
    let taken = |figure: &Value| figure["cases"].as_u64();
    let most = list(&document["figures"]).iter().filter_map(taken).max();
    for protocol in &mut all {
        protocol.metrics.retain(|metric| {
            metric.figures.iter().any(|(_, figure)| figure.is_some_and(|figure| figure["mean"].is_number()))
        });
        for metric in &mut protocol.metrics {
            let cases = metric.figures.iter().filter_map(|(_, figure)| taken((*figure)?)).max();
            metric.cases = cases.filter(|_| cases < most);
            let figures = metric.figures.iter().filter_map(|(_, figure)| *figure);
            let values = figures.flat_map(|figure| ["mean", "low", "high"].map(|key| figure[key].as_f64()));
            metric.scale = Scale::for_values(metric.unit, values.flatten());
        }
    }
    all.retain(|protocol| !protocol.metrics.is_empty());
    all
}

#[cfg(test)]
mod tests {
    use super::Scale;

    #[test]
    fn units_fit_the_largest() {
        let scaled = |unit: &str, value: f64| {
            let scale = Scale::for_values(unit, [value].into_iter());
            format!("{} {}", scale.format(value), scale.name)
        };
        assert_eq!(scaled("share", 0.12345), "12.3 %");
        assert_eq!(scaled("seconds", 0.0123), "12.30 ms");
        assert_eq!(scaled("seconds", 94.0), "94.00 s");
        assert_eq!(scaled("seconds", 36000.0), "10.00 h");
        assert_eq!(scaled("bytes", 512.0), "512 B");
        assert_eq!(scaled("bytes", 3.0 * 1024.0 * 1024.0), "3.00 MiB");
        assert_eq!(scaled("bits", -6.131), "−6.13 bits");
        assert_eq!(scaled("number", 0.00012), "1.2e−4 ");
        assert_eq!(scaled("number", 0.0), "0.000 ");
    }
}
