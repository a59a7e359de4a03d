//! Parses the command line, calls a command, and turns an error into one clear line and an exit code.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use emend::command;

/// Train, apply and compare editors of what a language model believes.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

// In the order in which they are met: a first edit, one's own model and facts, comparing, looking inside, the rest.
#[derive(Debug, Subcommand)]
enum Command {
    Apply(Box<command::apply::Args>),
    Predict(command::predict::Args),
    Serve(command::serve::Args),
    Inspect(command::inspect::Args),
    Squash(command::squash::Args),
    Export(command::export::Args),
    ImportLora(command::import_lora::Args),
    Forget(command::forget::Args),
    Doctor(command::doctor::Args),
    Fetch(command::fetch::Args),
    NewConfig(command::new_config::Args),
    Stats(command::stats::Args),
    Train(command::train::Args),
    Compare(command::compare::Args),
    Trace(Box<command::trace::Args>),
    Locate(command::locate::Args),
    Steer(command::steer::Args),
    MakeCompletions(command::make_completions::Args),
    Pretrain(command::pretrain::Args),
    Completions(command::shell::CompletionsArgs),
    Man(command::shell::ManArgs),
}

fn main() -> ExitCode {
    emend::process::keep_freed_memory();
    emend::process::explain_lost_pages();
    let filter = tracing_subscriber::EnvFilter::try_from_env("EMEND_LOG").unwrap_or_else(|_| "warn".into());
    let (log, colours) = (tracing_subscriber::fmt().with_env_filter(filter), std::io::stderr().is_terminal());
    log.with_writer(std::io::stderr).with_ansi(colours).init();
    command::handle_interrupts();
    let result = match Cli::parse().command {
        Command::Train(args) => command::train::run(&args),
        Command::Apply(args) => command::apply::run(&args),
        Command::Predict(args) => command::predict::run(&args),
        Command::Inspect(args) => command::inspect::run(&args),
        Command::Fetch(args) => command::fetch::run(&args).map_err(Into::into),
        Command::Pretrain(args) => command::pretrain::run(&args),
        Command::Stats(args) => command::stats::run(&args),
        Command::Forget(args) => command::forget::run(&args),
        Command::Squash(args) => command::squash::run(&args),
        Command::Steer(args) => command::steer::run(&args),
        Command::Export(args) => command::export::run(&args),
        Command::ImportLora(args) => command::import_lora::run(&args),
        Command::Compare(args) => command::compare::run(&args),
        Command::Trace(args) => command::trace::run(&args),
        Command::Locate(args) => command::locate::run(&args),
        Command::Doctor(args) => command::doctor::run(&args),
        Command::NewConfig(args) => command::new_config::run(&args),
        Command::Completions(args) => command::shell::completions(&args, Cli::command()),
        Command::Man(args) => command::shell::man(&args, Cli::command()),
        Command::MakeCompletions(args) => command::make_completions::run(&args),
        Command::Serve(args) => command::serve::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, whatever a file or its name holds.
            let line: String =
                error.to_string().chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
            eprintln!("error: {line}");
            ExitCode::from(error.exit_code())
        }
    }
}
