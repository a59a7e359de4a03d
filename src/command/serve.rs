//! `emend serve`: a model with edits over HTTP.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::serve::ListenerExt;

use super::{keep_state, print, stop};
use crate::archive::Archive;
use crate::config::apply::Config;
use crate::data::pocket;
use crate::data::text::Documents;
use crate::data::world::Split;
use crate::device;
use crate::edit::Edited;
use crate::error::{Error, Result};
use crate::evaluate::WatchedText;
use crate::model::{Model, Precision};
use crate::sections::within;
use crate::serve::editing::{Editing, NamedEditor, Workshop};
use crate::serve::edits::Edits;
use crate::serve::engine::{Engine, Limits};
use crate::serve::http::{Server, router};

/// Serve a model with edits: an endpoint that OpenAI's clients speak to, edits over HTTP, and a page to try them on.
///
/// A request's `model` names the edits that lie on the model: m is the model as it is, m+rome the model with rome.edit.safetensors, m+a+b with
/// two. The page is at http://127.0.0.1:8399.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  emend serve --model pocket --config configs/ft-pocket.toml --edits edits")]
pub struct Args {
    /// The model: a folder, a name on the Hugging Face hub that was fetched, or `pocket`
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// A saved edit to know from the start; may be given several times. A client may take it out of the server; its file stays
    #[arg(long = "edit", value_name = "FILE")]
    pub edit: Vec<PathBuf>,
    /// The folder where edits made over HTTP are kept; they are there again at the next start. Without it they are lost at the end
    #[arg(long, value_name = "DIR")]
    pub edits: Option<PathBuf>,
    /// A trained editor to offer; may be given several times
    #[arg(long = "archive", value_name = "DIR")]
    pub archives: Vec<PathBuf>,
    /// The configuration of an editor to offer that needs no training; may be given several times
    #[arg(long = "config", value_name = "FILE")]
    pub configs: Vec<PathBuf>,
    /// A running text to read before and after each edit: `pocket`, `wikitext` (fetched), or a file; with the pocket model `pocket` unless given
    #[arg(long, value_name = "TEXT")]
    pub text: Option<String>,
    /// Tokens of that text that are read
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub text_tokens: usize,
    /// The address to listen at; any but this machine's own needs --token
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS", value_parser = address)]
    pub host: IpAddr,
    /// The port to listen at; 0 takes a free one
    #[arg(long, default_value_t = 8399, value_name = "PORT")]
    pub port: u16,
    /// What every request must bear, as "Authorization: Bearer TOKEN"
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,
    /// Tokens of an answer at most
    #[arg(long, default_value_t = 1024, value_name = "N")]
    pub max_tokens: usize,
    /// Answers that are generated together
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub concurrency: usize,
    /// Answers that may wait; what comes on top is told to try again
    #[arg(long, default_value_t = 256, value_name = "N")]
    pub queue: usize,
    /// Bytes of a request at most
    #[arg(long, default_value_t = 1_000_000, value_name = "BYTES")]
    pub max_body: usize,
    /// The element type to compute with
    #[arg(long, value_enum, default_value = "f32")]
    pub dtype: Precision,
    /// cpu, cuda, cuda:N or wgpu
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: String,
}

fn address(text: &str) -> Result<IpAddr, std::net::AddrParseError> {
    if text == "localhost" { "127.0.0.1" } else { text }.parse()
}

/// How long answers that are on their way may take when the server is to end.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Runs the command.
///
/// # Errors
/// An address, model, edit, archive or config that is wrong.
pub fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    check(args)?;
    // A port in use is told before a model is read.
    let listener = listen(args)?;
    let address = listener.local_addr().map_err(Error::io(args.host.to_string()))?;
    let device = device::open(&args.device)?;
    let model = Arc::new(Model::load(&args.model, &device, args.dtype.into())?);
    let base = Edited::new(model.clone());
    let name =
        Path::new(args.model.trim_end_matches('/')).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let edits = Arc::new(Edits::open(name.clone(), base.clone(), &args.edit, args.edits.as_deref(), &args.archives)?);
    let editors = editors(args, &model)?;
    let text = text(args, &model)?;
    if args.edits.is_none() && !editors.is_empty() {
        tracing::warn!("edits made over HTTP are kept in memory alone and end with the server; --edits DIR keeps them");
    }
    // The first request is not to wait for weights that nobody has read yet.
    base.next_tokens(&model.tokenizer.encode_prompt("a")?, 1)?;
    let engine = Engine::start(Limits { concurrency: args.concurrency, queue: args.queue })?;
    let workshop = Workshop { loaded_as: args.model.clone(), editors, text, edits: edits.clone() };
    let server = Arc::new(Server {
        engine: engine.clone(),
        editing: Editing::start(workshop)?,
        edits,
        host: args.host,
        chat: model.tokenizer.chat(None).map_err(|error| error.to_string()),
        token: args.token.clone(),
        max_tokens: args.max_tokens,
        queue: args.queue,
        started: chrono::Utc::now().timestamp(),
    });
    let app = router(server, args.max_body);
    keep_state();
    print(&format!("emend serves {name} on http://{address} (ready in {:.1} s)\n", start.elapsed().as_secs_f64()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(Error::io("the server's threads"))?;
    let served = runtime.block_on(async {
        // Pieces of a stream are small, and each is awaited.
        let listener = tokio::net::TcpListener::from_std(listener)?.tap_io(|stream| drop(stream.set_nodelay(true)));
        let ended = axum::serve(listener, app).with_graceful_shutdown(asked_to_end()).into_future();
        tokio::select! {
            ended = ended => ended,
            () = last_words(engine) => Ok(()),
        }
    });
    // An edit that is on its way is left where it stands; its file appears whole or not at all.
    runtime.shutdown_background();
    served.map_err(Error::io(address.to_string()))
}

async fn asked_to_end() {
    while !stop() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Ends some seconds after the user asked to, whether answers are on their way or not.
async fn last_words(engine: Engine) {
    asked_to_end().await;
    engine.close();
    let asked = Instant::now();
    while asked.elapsed() < LAST_WORDS {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn check(args: &Args) -> Result<()> {
    if !args.host.is_loopback() && args.token.is_none() {
        return Err(Error::Config(format!(
            "--host {}: others could ask and edit this model; give a --token that they must bear, or listen at 127.0.0.1",
            args.host
        )));
    }
    if args.token.as_deref().is_some_and(|token| token.trim().is_empty()) {
        return Err(Error::Config("--token is blank; give a word that is hard to guess".into()));
    }
    for (name, number) in [
        ("--max-tokens", args.max_tokens),
        ("--concurrency", args.concurrency),
        ("--queue", args.queue),
        ("--max-body", args.max_body),
        ("--text-tokens", args.text_tokens),
    ] {
        within(name, number as f64, 1.0, 1e9)?;
    }
    Ok(())
}

fn listen(args: &Args) -> Result<TcpListener> {
    let address = SocketAddr::new(args.host, args.port);
    let wrong = |error: std::io::Error| {
        Error::Input(match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                format!(
                    "{address}: another program listens there; stop it, or give another --port (0 takes a free one)"
                )
            }
            _ => format!("{address}: {error}; give another --host or --port"),
        })
    };
    let listener = TcpListener::bind(address).map_err(wrong)?;
    listener.set_nonblocking(true).map_err(wrong)?;
    Ok(listener)
}

/// The editors of archives and configs, each by the name of its folder or file.
fn editors(args: &Args, model: &Arc<Model>) -> Result<Vec<NamedEditor>> {
    let name = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut editors: Vec<NamedEditor> = vec![];
    for folder in &args.archives {
        let archive = Archive::open(folder)?;
        editors.push(NamedEditor {
            name: name(folder),
            needs_subject: false,
            origin: format!("trained, {}", folder.display()),
            editor: archive.editor(model, false, &model.decoder.device())?,
            asking: archive.description.base.asking.clone(),
        });
    }
    for path in &args.configs {
        let config = Config::read(path, &[])?;
        editors.push(NamedEditor {
            name: name(path),
            needs_subject: config.editor.needs_subject(),
            origin: path.display().to_string(),
            editor: config.editor.editor(
                model,
                &args.model,
                path.parent().unwrap_or(Path::new("")),
                Box::new(|_| {}),
            )?,
            asking: config.data,
        });
    }
    for (number, editor) in editors.iter().enumerate() {
        if editors[..number].iter().any(|known| known.name == editor.name) {
            return Err(Error::Config(format!(
                "two editors are called {}; rename the folder or file of one",
                editor.name
            )));
        }
    }
    Ok(editors)
}

fn text(args: &Args, model: &Model) -> Result<Option<WatchedText>> {
    let Some(name) = args.text.as_deref().or(pocket::of_model(&args.model)) else { return Ok(None) };
    let documents = Documents::open(name, Split::Test, Path::new(""), "text")?;
    WatchedText::open(name, &documents, args.text_tokens, model).map(Some)
}
