//! Where a name in a config leads: the one place that knows the order in which it is looked for.

use std::path::{Path, PathBuf};

/// What a name leads to: beside the config, that is in `folder`, else from the working folder. Nothing where neither `is` what is
/// wanted (`Path::is_file`, `Path::is_dir`): then it may be the name of a model or of a data set.
///
/// A name given on the command line has the folder `""`: it is looked for from the working folder alone.
pub fn find(name: &str, folder: &Path, is: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    [folder.join(name), PathBuf::from(name)].into_iter().find(|path| is(path))
}

/// The file that a name leads to, as [`find`]; where there is none, the name from the working folder, for an error to tell.
pub fn file(name: &str, folder: &Path) -> PathBuf {
    find(name, folder, Path::is_file).unwrap_or_else(|| name.into())
}

/// The whole path of the folder that a name leads to, as [`find`], so that what names it can be moved; the name itself where there
/// is none: then it is the name of a model.
pub fn folder_or_name(name: &str, folder: &Path) -> String {
    let whole = find(name, folder, Path::is_dir).and_then(|found| found.canonicalize().ok());
    whole.map_or_else(|| name.to_owned(), |whole| whole.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beside_the_config_then_from_the_working_folder_then_a_name() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path();
        std::fs::create_dir(place.join("base")).unwrap();
        std::fs::write(place.join("facts.json"), "[]").unwrap();
        // The working folder of tests is the package's: it has a Cargo.toml, a Cargo.lock and src.
        std::fs::write(place.join("Cargo.toml"), "").unwrap();

        assert_eq!(file("facts.json", place), place.join("facts.json"));
        assert_eq!(file("Cargo.toml", place), place.join("Cargo.toml"));
        assert_eq!(file("Cargo.lock", place), Path::new("Cargo.lock"));
        assert_eq!(file("none.json", place), Path::new("none.json"));
        assert_eq!(find("none.json", place, Path::exists), None);
        assert_eq!(find("facts.json", Path::new(""), Path::is_file), None);

        let whole = |path: &Path| path.canonicalize().unwrap().to_string_lossy().into_owned();
        assert_eq!(folder_or_name("base", place), whole(&place.join("base")));
        assert_eq!(folder_or_name("src", place), whole(Path::new("src")));
        assert_eq!(folder_or_name(&place.join("base").to_string_lossy(), Path::new("src")), whole(&place.join("base")));
        // A file is no model.
        assert_eq!(folder_or_name("facts.json", place), "facts.json");
        assert_eq!(folder_or_name("gpt2-xl", place), "gpt2-xl");
    }
}
