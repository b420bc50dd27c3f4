//! Where Macula keeps its files.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// The Macula directory: `$MACULA_HOME`, else `$XDG_CONFIG_HOME/macula`, else `~/.config/macula`.
/// `None` when none of the variables is set.
pub fn directory() -> Option<PathBuf> {
    directory_from(|name| std::env::var_os(name))
}

/// Creates a directory for secrets: on Unix, only its owner may look into it. One that exists stays
/// as it is.
///
/// # Errors
/// What the system says.
pub fn create(directory: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
}

fn directory_from(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("MACULA_HOME")
        .or_else(|| set("XDG_CONFIG_HOME").map(|path| path.join("macula")))
        .or_else(|| set("HOME").map(|path| path.join(".config/macula")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(variables: &[(&str, &str)], expected: Option<&str>) {
        let found = directory_from(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        });
        assert_eq!(found, expected.map(PathBuf::from));
    }

    #[test]
    fn the_directory_is_the_first_variable_set() {
        check(&[("MACULA_HOME", "/m"), ("XDG_CONFIG_HOME", "/x"), ("HOME", "/h")], Some("/m"));
        check(&[("MACULA_HOME", ""), ("XDG_CONFIG_HOME", "/x")], Some("/x/macula"));
        check(&[("HOME", "/h")], Some("/h/.config/macula"));
        check(&[], None);
    }
}
