//! `emend completions` and `emend man`: what a shell and `man` want to know of the command line.

use std::path::PathBuf;

use clap_complete::Shell;
use clap_mangen::Man;

use super::print;
use crate::error::{Error, Result};
use crate::files;

/// Print a script with which a shell completes emend's commands and options.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: emend completions bash > ~/.local/share/bash-completion/completions/emend")]
pub struct CompletionsArgs {
    /// The shell
    pub shell: Shell,
}

/// Print the man page, or write one page for emend and one for each command.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: emend man --out ~/.local/share/man/man1, then man emend-apply")]
pub struct ManArgs {
    /// Write all pages into this folder instead of printing that of emend
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Runs `emend completions` for the whole command line.
///
/// # Errors
/// Output that cannot be written.
pub fn completions(args: &CompletionsArgs, mut whole: clap::Command) -> Result<()> {
    let mut script = vec![];
    clap_complete::generate(args.shell, &mut whole, "emend", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Runs `emend man` for the whole command line.
///
/// # Errors
/// Output or a folder that cannot be written.
pub fn man(args: &ManArgs, mut whole: clap::Command) -> Result<()> {
    let Some(folder) = &args.out else {
        return print(&String::from_utf8_lossy(&page(whole)?));
    };
    files::check_writable(folder)?;
    // Each command then knows its whole name, "emend apply".
    whole.build();
    for command in whole.get_subcommands().filter(|command| command.get_name() != "help") {
        let name = format!("emend-{}", command.get_name());
        files::write(&folder.join(format!("{name}.1")), &page(command.clone().display_name(name))?)?;
    }
    files::write(&folder.join("emend.1"), &page(whole)?)
}

fn page(command: clap::Command) -> Result<Vec<u8>> {
    let mut page = vec![];
    Man::new(command).render(&mut page).map_err(Error::io("man page"))?;
    Ok(page)
}
