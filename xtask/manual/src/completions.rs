//! Completions for shells.

use clap_complete::{Generator, Shell, generate};

/// Those of bash, zsh and fish: names, as the shells look for them, and contents.
pub(crate) fn all() -> Vec<(String, Vec<u8>)> {
    let render = |(shell, name): (Shell, &str)| {
        let mut script = Vec::new();
        generate(shell, &mut adit::cli::command(), "adit", &mut script);
        (name.to_owned(), script)
    };
    // bash-completion loads a file that is called as the command, without an extension.
    let names = [(Shell::Bash, "adit".to_owned())].into_iter();
    let others = [Shell::Zsh, Shell::Fish].map(|shell| (shell, shell.file_name("adit")));
    names
        .chain(others)
        .map(|(shell, name)| render((shell, &name)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn script(name: &str) -> String {
        let (_, script) = all().into_iter().find(|(found, _)| found == name).unwrap();
        String::from_utf8(script).unwrap()
    }

    /// What bash offers for a command line whose last word is being typed.
    fn offers(words: &[&str]) -> Vec<String> {
        let quoted: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
        let last = words.len() - 1;
        let commands = format!(
            "{}\nCOMP_WORDS=({})\nCOMP_CWORD={last}\n_adit adit '{}' '{}'\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script("adit"),
            quoted.join(" "),
            words[last],
            words[last - 1]
        );
        let output = Command::new("bash")
            .args(["-euc", &commands])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| line.trim().to_owned()).collect()
    }

    #[test]
    fn bash_offers_commands_options_and_values() {
        assert_eq!(offers(&["adit", "re"]), ["restart", "reresolve"]);
        assert_eq!(offers(&["adit", "show", "--j"]), ["--json"]);
        assert_eq!(offers(&["adit", "--datapath", "s"]), ["socket"]);
        assert_eq!(offers(&["adit", "genkey", "--"]), ["--help"]);
    }

    #[test]
    fn other_shells_know_every_command_and_option() {
        let mut command = adit::cli::command();
        command.build();
        for script in [script("_adit"), script("adit.fish")] {
            for subcommand in command.get_subcommands() {
                assert!(script.contains(subcommand.get_name()));
            }
            for option in command.get_arguments().filter_map(clap::Arg::get_long) {
                assert!(script.contains(option), "{option}");
            }
        }
    }
}
