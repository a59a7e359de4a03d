//! The thread that generates. Requests for the same stack of edits share one pass a token, different stacks take turns token by token, and a request joins between
//! two tokens: its prompt is read in passes of its own, then its keys and values are put beside those of the rows that run.
//!
//! A row has draws of its own, so the same request with the same seed is answered alike whatever else runs, up to what sums over batches of another shape
//! differ by in their last digits: where two tokens are as good as equally likely, company may decide.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use tokio::sync::mpsc::UnboundedSender;

use super::refusal::Refusal;
use super::text::{Released, StopStrings, TextStream};
use crate::edit::generate::{Sampling, check_finite, highest, numbers, stream};
use crate::edit::running::RunningRows;
use crate::edit::{AnswerGenerator, Edited};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::panics::survived;

/// Tokens of a prompt that are read in one pass; rows that run get a token between two such passes.
const PIECE: usize = 512;

/// Cells of a pass over several prompts, padding among them.
const CELLS: usize = 1024;

/// A prompt to be continued, once or several times.
pub struct Job {
    /// The stack of edits that is asked.
    pub model: Arc<Edited>,
    /// The prompt's tokens.
    pub prompt: Vec<u32>,
    /// The number of its first answer in the request.
    pub first: usize,
    /// How many answers are wanted.
    pub choices: usize,
    /// Tokens of an answer at most, one at least.
    pub most: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Texts that end an answer, and are no part of it.
    pub stop: Vec<String>,
    /// Tokens that do.
    pub stop_tokens: Vec<u32>,
    /// Whether the answer goes on from the prompt's last token, as a text does, or begins a text of its own.
    pub goes_on: bool,
    /// How many likeliest tokens are told at each place, where log-probabilities are wanted.
    pub top: Option<usize>,
    /// What comes of it. It holds whatever was not read yet: a slow reader keeps nobody waiting.
    pub events: UnboundedSender<Event>,
}

/// What comes of a job.
#[derive(Debug)]
pub enum Event {
    /// Text of an answer, and the tokens that made it, where log-probabilities are wanted.
    Text {
        /// Which answer.
        choice: usize,
        /// What is added to it.
        text: String,
        /// Its tokens.
        tokens: Vec<Said>,
    },
    /// The end of an answer.
    End {
        /// Which answer.
        choice: usize,
        /// Whether it ended by itself, and not because there was no more room.
        stopped: bool,
        /// How many tokens were made.
        tokens: usize,
    },
    /// No answer: the message says why.
    Failed(String),
}

/// A token that was said.
#[derive(Debug, Clone)]
pub struct Said {
    /// The token.
    pub token: Shown,
    /// Where it begins in the answer, in characters.
    pub offset: usize,
    /// The likeliest tokens at its place.
    pub top: Vec<Shown>,
}

/// A token with its probability.
#[derive(Debug, Clone)]
pub struct Shown {
    /// Its text; of part of a letter, as its bytes are written.
    pub text: String,
    /// The bytes it stands for.
    pub bytes: Vec<u8>,
    /// ln p, by the model's own logits.
    pub log_probability: f32,
}

/// How much is taken on.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Answers that are generated together.
    pub concurrency: usize,
    /// Answers that may wait.
    pub queue: usize,
}

/// A handle on the thread.
#[derive(Clone)]
pub struct Engine(Arc<Shared>);

struct Shared {
    limits: Limits,
    waiting: Mutex<Waiting>,
    wake: Condvar,
    running: AtomicUsize,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn choices<'a>(jobs: impl IntoIterator<Item = &'a Job>) -> usize {
    jobs.into_iter().map(|job| job.choices).sum()
}

impl Engine {
    /// Starts the thread.
    ///
    /// # Errors
    /// A system without threads.
    pub fn start(limits: Limits) -> Result<Self> {
        let shared =
            Arc::new(Shared { limits, waiting: Mutex::default(), wake: Condvar::new(), running: AtomicUsize::new(0) });
        let own = shared.clone();
        let thread = std::thread::Builder::new().name("engine".into()).spawn(move || own.run());
        thread.map_err(|error| Error::Input(format!("no thread could be started: {error}")))?;
        Ok(Engine(shared))
    }

    /// Takes on the jobs of a request, all or none.
    ///
    /// # Errors
    /// Too many wait, or the server is about to end.
    pub fn submit(&self, jobs: Vec<Job>) -> Result<(), Refusal> {
        let mut waiting = self.0.waiting();
        // Whoever has gone away waits for nothing.
        waiting.jobs.retain(|job| !job.events.is_closed());
        if waiting.closed {
            return Err(Refusal::closing());
        }
        if choices(&waiting.jobs) + choices(&jobs) > self.0.limits.queue {
            return Err(Refusal::overloaded("as many answers wait as may (--queue); try again in a while"));
        }
        waiting.jobs.extend(jobs);
        self.0.wake.notify_one();
        Ok(())
    }

    /// Whether it takes on no more.
    pub fn is_closed(&self) -> bool {
        self.0.waiting().closed
    }

    /// How many answers are generated now.
    pub fn running(&self) -> usize {
        self.0.running.load(Ordering::Relaxed)
    }

    /// How many answers wait.
    pub fn waiting(&self) -> usize {
        choices(&self.0.waiting().jobs)
    }

    /// Takes on no more; what was taken on is finished.
    pub fn close(&self) {
        self.0.waiting().closed = true;
        self.0.wake.notify_one();
    }
}

impl Shared {
    fn run(&self) {
        let mut stacks: Vec<Together> = vec![];
        loop {
            let Some(jobs) = self.admit(&stacks) else { return };
            for job in jobs {
                let known = stacks.iter().position(|stack| stack.model.id() == job.model.id());
                let place = known.unwrap_or_else(|| {
                    stacks.push(Together::new(job.model.clone()));
                    stacks.len() - 1
                });
                stacks[place].arrivals.push_back(job);
            }
            self.running.store(stacks.iter().map(Together::count).sum(), Ordering::Relaxed);
            for stack in &mut stacks {
                match survived(|| stack.turn()) {
                    Some(Ok(())) => {}
                    Some(Err(error)) => stack.fail(&error.to_string()),
                    None => stack.fail("the server met an error of its own; the request was not the reason"),
                }
            }
            stacks.retain(|stack| stack.count() > 0);
            self.running.store(stacks.iter().map(Together::count).sum(), Ordering::Relaxed);
        }
    }

    /// The jobs that begin now; waits where nothing runs. Nothing when there is no more to do.
    fn admit(&self, stacks: &[Together]) -> Option<Vec<Job>> {
        let mut running: usize = stacks.iter().map(Together::count).sum();
        let mut waiting = self.waiting();
        while running == 0 && waiting.jobs.is_empty() {
            if waiting.closed {
                return None;
            }
            waiting = self.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        let mut jobs = vec![];
        while let Some(job) = waiting.jobs.front() {
            if running > 0 && running + job.choices > self.limits.concurrency {
                break;
            }
            running += job.choices;
            jobs.extend(waiting.jobs.pop_front());
        }
        jobs.retain(|job| !job.events.is_closed());
        Some(jobs)
    }
}

/// Answers of one stack of edits.
struct Together {
    model: Arc<Edited>,
    /// What nothing was read of.
    arrivals: VecDeque<Job>,
    /// Prompts that are read.
    reading: Option<(RunningRows, Vec<Job>)>,
    /// Rows that run, and the answers that they are.
    rows: RunningRows,
    answers: Vec<Answer>,
    /// Answers that a memory names. Each has passes of its own.
    beside: Vec<(AnswerGenerator, Answer)>,
}

impl Together {
    fn new(model: Arc<Edited>) -> Self {
        let rows = RunningRows::new(&model, &[]);
        Together { model, arrivals: VecDeque::new(), reading: None, rows, answers: vec![], beside: vec![] }
    }

    fn count(&self) -> usize {
        let reading = self.reading.iter().flat_map(|(_, jobs)| jobs);
        choices(self.arrivals.iter().chain(reading)) + self.answers.len() + self.beside.len()
    }

    /// Tells all of its clients that there is no answer.
    fn fail(&mut self, message: &str) {
        tracing::error!("{message}");
        let failed = std::mem::replace(self, Together::new(self.model.clone()));
        let reading = failed.reading.into_iter().flat_map(|(_, jobs)| jobs);
        let jobs = failed.arrivals.into_iter().chain(reading).map(|job| job.events);
        let beside = failed.beside.into_iter().map(|(_, answer)| answer);
        let answers = failed.answers.into_iter().chain(beside).map(|answer| answer.events);
        // A client that has gone away need not be told.
        jobs.chain(answers).for_each(|events| drop(events.send(Event::Failed(message.to_owned()))));
    }

    /// A token for every row, and one piece of what newcomers are to be read of.
    fn turn(&mut self) -> Result<()> {
        if let Err(error) = self.read() {
            // A prompt that cannot be read is no fault of the rows that run.
            let jobs = self.reading.take().into_iter().flat_map(|(_, jobs)| jobs);
            jobs.for_each(|job| drop(job.events.send(Event::Failed(error.to_string()))));
        }
        if !self.answers.is_empty() {
            let logits = self.rows.step()?;
            let width = logits.dims()[1];
            let logits = numbers(logits);
            let taken: Vec<Option<u32>> = self
                .answers
                .par_iter_mut()
                .zip(logits.par_chunks(width))
                .map(|(answer, logits)| answer.take(logits))
                .collect();
            self.keep(&taken);
        }
        let beside = std::mem::take(&mut self.beside);
        for (mut generator, mut answer) in beside {
            if !generator.has_room() {
                answer.finish(false);
                continue;
            }
            match generator.logits() {
                Ok(Some(logits)) => {
                    if let Some(token) = answer.take(&logits) {
                        generator.push(token);
                        self.beside.push((generator, answer));
                    }
                }
                Ok(None) => answer.finish(true),
                Err(error) => answer.fail(&error),
            }
        }
        Ok(())
    }

    /// Goes on with the rows that were given a token.
    fn keep(&mut self, taken: &[Option<u32>]) {
        taken.iter().enumerate().for_each(|(row, token)| token.iter().for_each(|&token| self.rows.push(row, token)));
        let kept: Vec<usize> = (0..taken.len()).filter(|&row| taken[row].is_some()).collect();
        if kept.len() == taken.len() {
            return;
        }
        let mut row = 0..taken.len();
        self.answers.retain(|_| row.next().is_some_and(|row| taken[row].is_some()));
        match kept.is_empty() {
            true => self.rows = RunningRows::new(&self.model, &[]),
            false => {
                self.rows.keep(&kept);
                self.rows.drop_gaps();
            }
        }
    }

    /// Reads a piece of the prompts at hand; those that are read whole run from now on.
    fn read(&mut self) -> Result<()> {
        if self.reading.is_none() {
            let jobs = self.next_together();
            if jobs.is_empty() {
                return Ok(());
            }
            let prompts: Vec<Vec<u32>> = jobs.iter().map(|job| job.prompt.clone()).collect();
            self.reading = Some((RunningRows::new(&self.model, &prompts), jobs));
        }
        if let Some((rows, _)) = &mut self.reading
            && rows.read_ahead(PIECE)?
        {
            return Ok(());
        }
        let Some((rows, _)) = &mut self.reading else { return Ok(()) };
        let logits = rows.step()?;
        let width = logits.dims()[1];
        let logits = numbers(logits);
        let Some((mut rows, jobs)) = self.reading.take() else { return Ok(()) };
        // A prompt that is continued several times was read once.
        let owners: Vec<usize> =
            jobs.iter().enumerate().flat_map(|(row, job)| std::iter::repeat_n(row, job.choices)).collect();
        let mut answers: Vec<Answer> = jobs
            .iter()
            .flat_map(|job| (0..job.choices).map(|choice| Answer::new(job, choice, self.model.base())))
            .collect();
        let logits_of = |&row: &usize| &logits[row * width..(row + 1) * width];
        let taken: Vec<Option<u32>> =
            answers.par_iter_mut().zip(&owners).map(|(answer, row)| answer.take(logits_of(row))).collect();
        let kept: Vec<usize> = (0..taken.len()).filter(|&answer| taken[answer].is_some()).collect();
        if kept.is_empty() {
            return Ok(());
        }
        rows.keep(&kept.iter().map(|&answer| owners[answer]).collect::<Vec<_>>());
        taken.into_iter().flatten().enumerate().for_each(|(row, token)| rows.push(row, token));
        self.rows.join(rows)?;
        let mut number = 0..;
        answers.retain(|_| number.next().is_some_and(|number| kept.binary_search(&number).is_ok()));
        self.answers.append(&mut answers);
        Ok(())
    }

    /// Jobs whose prompts are read in the same passes: a long one by itself. Those that a memory answers go their own way.
    fn next_together(&mut self) -> Vec<Job> {
        let (mut jobs, mut longest): (Vec<Job>, usize) = (vec![], 0);
        while let Some(job) = self.arrivals.front() {
            let width = longest.max(job.prompt.len());
            if !jobs.is_empty() && (width > PIECE || width * (jobs.len() + 1) > CELLS) {
                break;
            }
            let Some(job) = self.arrivals.pop_front() else { break };
            if let Some(job) = self.consult(job) {
                longest = width;
                jobs.push(job);
            }
        }
        jobs
    }

    /// Gives a job back where the weights answer it.
    fn consult(&mut self, job: Job) -> Option<Job> {
        if !self.model.has_memory() {
            return Some(job);
        }
        match self.model.generators(&vec![job.prompt.clone(); job.choices]) {
            Err(error) => {
                let _ = job.events.send(Event::Failed(error.to_string()));
                None
            }
            Ok(generators) => {
                let mut answered = false;
                for (choice, generator) in generators.into_iter().enumerate() {
                    if let Some((generator, _)) = generator {
                        let answer = Answer::new(&job, choice, generator.model().base());
                        self.beside.push((generator, answer));
                        answered = true;
                    }
                }
                (!answered).then_some(job)
            }
        }
    }
}

/// An answer on its way.
struct Answer {
    choice: usize,
    /// The model whose tokens it is made of.
    model: Arc<Model>,
    text: TextStream,
    stops: StopStrings,
    stop_tokens: Vec<u32>,
    sampling: Sampling,
    draws: ChaCha8Rng,
    /// How many tokens were made, and how many may be.
    made: usize,
    most: usize,
    top: Option<usize>,
    /// Tokens whose text is held back.
    held: Vec<Said>,
    /// Characters that the tokens made so far, and those of them that were given out.
    written: usize,
    given: usize,
    events: UnboundedSender<Event>,
}

impl Answer {
    /// An answer to a job in the tokens of a model: the job's own, or the one that a memory names.
    fn new(job: &Job, choice: usize, model: &Arc<Model>) -> Self {
        let own = Arc::ptr_eq(model, job.model.base()) || model.fingerprint == job.model.base().fingerprint;
        let last = job.prompt.last().copied().filter(|_| job.goes_on && own && !model.tokenizer.of_pairs());
        let number = job.first + choice;
        Answer {
            choice: number,
            text: TextStream::new(last),
            stops: StopStrings::new(job.stop.clone()),
            stop_tokens: if own { job.stop_tokens.clone() } else { model.stop_tokens() },
            sampling: job.sampling.clone(),
            draws: stream(&job.sampling, number),
            made: 0,
            // A classifier says one label.
            most: if model.tokenizer.labels().is_some() { 1 } else { job.most },
            top: job.top,
            held: vec![],
            written: 0,
            given: 0,
            events: job.events.clone(),
            model: model.clone(),
        }
    }

    /// Takes the logits of its next token; the token, where it goes on.
    fn take(&mut self, logits: &[f32]) -> Option<u32> {
        self.taken(logits).unwrap_or_else(|error| {
            self.fail(&error);
            None
        })
    }

    fn taken(&mut self, logits: &[f32]) -> Result<Option<u32>> {
        if self.events.is_closed() {
            return Ok(None);
        }
        check_finite(logits)?;
        let token = self.sampling.choose(logits, &mut self.draws);
        if self.stop_tokens.contains(&token) {
            self.finish(true);
            return Ok(None);
        }
        self.made += 1;
        if let Some(top) = self.top {
            let said = self.said(token, logits, top);
            self.held.push(said);
        }
        let piece = self.text.push(&self.model.tokenizer, token)?;
        if self.write(&piece) {
            self.end(true);
            return Ok(None);
        }
        if self.made >= self.most {
            self.finish(self.model.tokenizer.labels().is_some());
            return Ok(None);
        }
        Ok(Some(token))
    }

    /// Adds to the text, and gives out what is not held back; whether a stop string was met.
    fn write(&mut self, piece: &str) -> bool {
        self.written += piece.chars().count();
        let Released { text, stopped } = self.stops.push(piece);
        if stopped {
            // What stands behind the end is no part of the answer.
            let end = self.given + text.chars().count();
            self.held.retain(|said| said.offset < end);
        }
        if !text.is_empty() || stopped {
            self.give(text);
        }
        stopped
    }

    fn give(&mut self, text: String) {
        self.given += text.chars().count();
        let tokens = std::mem::take(&mut self.held);
        if !text.is_empty() || !tokens.is_empty() {
            // A client that has gone away is noticed before the next token.
            let _ = self.events.send(Event::Text { choice: self.choice, text, tokens });
        }
    }

    /// Gives out what was held back, for there is no further token.
    fn finish(&mut self, stopped: bool) {
        let rest = self.text.rest(&self.model.tokenizer).unwrap_or_default();
        let met = self.write(&rest);
        if !met {
            let held = self.stops.rest();
            self.give(held);
        }
        self.end(stopped || met);
    }

    fn end(&self, stopped: bool) {
        let _ = self.events.send(Event::End { choice: self.choice, stopped, tokens: self.made });
    }

    fn fail(&self, error: &Error) {
        let _ = self.events.send(Event::Failed(error.to_string()));
    }

    /// A token with its log-probability and those of the likeliest: log softmax of the logits as they are.
    fn said(&self, token: u32, logits: &[f32], top: usize) -> Said {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f64 = logits.iter().map(|&logit| f64::from((logit - largest).exp())).sum();
        let log_total = f64::from(largest) + total.ln();
        let tokenizer = &self.model.tokenizer;
        let shown = |id: u32| Shown {
            text: tokenizer.token(id),
            bytes: tokenizer.token_bytes(id),
            log_probability: (f64::from(logits[id as usize]) - log_total).min(0.0) as f32,
        };
        let top = if top == 0 { vec![] } else { highest(logits, top).into_iter().map(shown).collect() };
        Said { token: shown(token), offset: self.written, top }
    }
}
