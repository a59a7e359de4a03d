//! How far a long work is: a bar, or where there is no terminal a line now and then.

use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

/// How often a line is printed where there is no terminal.
const TOLD_EVERY: Duration = Duration::from_secs(30);

/// The steps of a training.
pub(super) struct Steps {
    /// What a terminal shows.
    pub bar: ProgressBar,
    /// How many there are.
    pub count: u64,
    /// When the last line was printed, and the first step of this run.
    told: Instant,
    begun: Option<(Instant, usize)>,
}

impl Steps {
    /// So many steps.
    pub fn new(steps: usize) -> Self {
        let bar = ProgressBar::new(steps as u64);
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} {per_sec} {eta} {msg}") {
            bar.set_style(style);
        }
        Steps { bar, count: steps as u64, told: Instant::now(), begun: None }
    }

    /// Says what a step came to; where no bar is seen every half a minute.
    pub fn tell(&mut self, step: usize, said: String) {
        let (begun, first) = *self.begun.get_or_insert((Instant::now(), step));
        if self.bar.is_hidden() && self.told.elapsed() >= TOLD_EVERY {
            self.told = Instant::now();
            let rate = (step - first) as f64 / begun.elapsed().as_secs_f64().max(1e-9);
            let left = self.count.saturating_sub(step as u64) as f64 / rate;
            let left =
                if rate > 0.0 { format!("{} left", HumanDuration(Duration::from_secs_f64(left))) } else { "".into() };
            eprintln!("step {step:>6} of {}   {rate:.2} a second, {left}   {said}", self.count);
        }
        self.bar.set_message(said);
    }
}

/// A bar over so many pieces of a work, with a line now and then where no terminal shows it.
pub(super) fn bar(pieces: usize, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(pieces as u64);
    if let Ok(style) = ProgressStyle::with_template(&format!("{{wide_bar}} {{pos}}/{{len}} {what} {{per_sec}} {{eta}}"))
    {
        bar.set_style(style);
    }
    tell_now_and_then(&bar, what);
    bar
}

/// Says every half a minute how far a bar is, as long as it is not finished, where no terminal shows it.
pub(super) fn tell_now_and_then(bar: &ProgressBar, what: &'static str) {
    if !bar.is_hidden() {
        return;
    }
    let watched = bar.downgrade();
    std::thread::spawn(move || {
        let begun = Instant::now();
        let first = watched.upgrade().map_or(0, |bar| bar.position());
        let mut told = Instant::now();
        loop {
            // Short, so that a line does not follow what ended long ago.
            std::thread::sleep(Duration::from_secs(1));
            let Some(bar) = watched.upgrade().filter(|bar| !bar.is_finished()) else { return };
            if told.elapsed() < TOLD_EVERY {
                continue;
            }
            told = Instant::now();
            let (done, all) = (bar.position(), bar.length().filter(|all| *all > 0));
            let rate = done.saturating_sub(first) as f64 / begun.elapsed().as_secs_f64();
            let of = all.map_or(String::new(), |all| format!(" of {all}"));
            let left = all.filter(|_| rate > 0.0).map_or(String::new(), |all| {
                format!(", {} left", HumanDuration(Duration::from_secs_f64(all.saturating_sub(done) as f64 / rate)))
            });
            eprintln!("{done}{of} {what}{left}");
        }
    });
}
