//! `tessera completions` and `tessera manual`: files of the program that a package installs.

use std::{io::Write as _, path::PathBuf};

use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Cli, progress::Progress};
use crate::{
    error::{Error, Result},
    store::AtomicFile,
};

/// Print the completion script of a shell
#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// Shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Write the manual pages, tessera.1 and one for each subcommand
#[derive(Debug, clap::Args)]
pub(super) struct ManualArgs {
    /// Existing folder to write, such as /usr/local/share/man/man1
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

pub(super) fn completions(args: &CompletionsArgs, progress: &Progress) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "tessera", &mut script);
    progress.raw(&script).map(drop)
}

pub(super) fn manual(args: &ManualArgs, progress: &Progress) -> Result<()> {
    let mut command = Cli::command();
    command.build();
    let pages = command.get_subcommands().filter(|page| page.get_name() != "help");
    let pages: Vec<_> = std::iter::once(&command).chain(pages).collect();
    for page in &pages {
        let name = page.get_display_name().unwrap_or(page.get_name());
        let path = args.folder.join(format!("{name}.1"));
        let mut text = Vec::new();
        let rendered = Man::new((*page).clone()).render(&mut text);
        let mut file = AtomicFile::create(&path)?;
        rendered.and_then(|()| file.write_all(&text)).map_err(|e| Error::io("write", &path, e))?;
        file.commit()?;
    }
    progress.result(&format!("{}: {} pages\n", args.folder.display(), pages.len()))
}
