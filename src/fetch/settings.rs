//! Where things are kept and where they come from: the one place that reads the environment.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Everything about fetching that the environment decides. Tests build their own.
#[derive(Debug, Clone)]
pub struct FetchSettings {
    /// This program's cache: `$EMEND_CACHE`, else `$XDG_CACHE_HOME/emend`, else `~/.cache/emend`.
    pub cache: PathBuf,
    /// A folder of models by name: `$EMEND_MODELS`, else `~/.cache/emend-models`.
    pub models: PathBuf,
    /// The Hugging Face cache, shared with other tools: `$HF_HUB_CACHE`, else `$HF_HOME/hub`, else
    /// `$XDG_CACHE_HOME/huggingface/hub`, else `~/.cache/huggingface/hub`.
    pub hub_cache: PathBuf,
    /// The hub's address without a slash at its end: `$HF_ENDPOINT`, else `https://huggingface.co`.
    pub endpoint: String,
    /// `$HF_TOKEN`, else the file `$HF_TOKEN_PATH`, else `token` in the Hugging Face home.
    pub token: Option<Token>,
    /// `$HF_HUB_OFFLINE`: never ask the hub.
    pub offline: bool,
    /// `$EMEND_DATA_URL`: a base address to take named data sets from instead of their published ones (a mirror, or a
    /// test's own server). Known checksums hold there too.
    pub data_url: Option<String>,
    /// How often in a row a broken connection may fail without a byte gained before the download gives up.
    pub retries: u32,
    /// The wait before the first new try; it doubles with each further one, up to 16 times this.
    pub backoff: Duration,
    /// How long a connection may stay silent.
    pub timeout: Duration,
}

/// A hub token. It never shows in logs: its `Debug` form is a row of dots.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Takes a token as written in a file or variable; blank ones are none.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Token(text.to_owned()))
    }

    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl FetchSettings {
    /// Reads the environment.
    pub fn from_env() -> Self {
        Self::from_lookup(|name| std::env::var_os(name))
    }

    /// Reads variables through `lookup`; an empty one counts as unset.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<OsString>) -> Self {
        let var = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let path = |name: &str| var(name).map(PathBuf::from);
        let text = |name: &str| var(name).map(|value| value.to_string_lossy().trim().to_owned());
        let address = |name: &str| text(name).map(|url| url.trim_end_matches('/').to_owned());

        // A machine without a home (some containers) still gets a place that can be written.
        let home = path("HOME").or_else(std::env::home_dir).unwrap_or_else(std::env::temp_dir);
        let user_cache = home.join(".cache");
        let xdg_cache = path("XDG_CACHE_HOME").unwrap_or_else(|| user_cache.clone());
        let hub_home = path("HF_HOME").unwrap_or_else(|| xdg_cache.join("huggingface"));
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| hub_home.join("token"));
        let token = text("HF_TOKEN")
            .and_then(|token| Token::new(&token))
            .or_else(|| std::fs::read_to_string(token_file).ok().and_then(|token| Token::new(&token)));

        FetchSettings {
            cache: path("EMEND_CACHE").unwrap_or_else(|| xdg_cache.join("emend")),
            models: path("EMEND_MODELS").unwrap_or_else(|| user_cache.join("emend-models")),
            hub_cache: path("HF_HUB_CACHE").unwrap_or_else(|| hub_home.join("hub")),
            endpoint: address("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            token,
            offline: text("HF_HUB_OFFLINE").is_some_and(|value| is_yes(&value)),
            data_url: address("EMEND_DATA_URL"),
            retries: 5,
            backoff: Duration::from_millis(500),
            timeout: Duration::from_secs(60),
        }
    }
}

/// The words that other tools of the hub take for yes.
fn is_yes(value: &str) -> bool {
    ["1", "true", "yes", "on"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(vars: &[(&str, &str)]) -> FetchSettings {
        let vars: Vec<(String, OsString)> = vars.iter().map(|(k, v)| (k.to_string(), v.into())).collect();
        FetchSettings::from_lookup(|name| vars.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()))
    }

    #[test]
    fn places_follow_the_variables_in_their_order() {
        let plain = settings(&[("HOME", "/h")]);
        assert_eq!(plain.cache, PathBuf::from("/h/.cache/emend"));
        assert_eq!(plain.models, PathBuf::from("/h/.cache/emend-models"));
        assert_eq!(plain.hub_cache, PathBuf::from("/h/.cache/huggingface/hub"));
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert!(!plain.offline && plain.token.is_none() && plain.data_url.is_none());

        let xdg = settings(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("EMEND_CACHE", "")]);
        assert_eq!(xdg.cache, PathBuf::from("/x/emend"));
        assert_eq!(xdg.hub_cache, PathBuf::from("/x/huggingface/hub"));

        let own = settings(&[
            ("EMEND_CACHE", "/e"),
            ("HF_HOME", "/f"),
            ("HF_ENDPOINT", "http://m/"),
            ("HF_HUB_OFFLINE", "1"),
        ]);
        assert_eq!(own.cache, PathBuf::from("/e"));
        assert_eq!(own.hub_cache, PathBuf::from("/f/hub"));
        assert_eq!(own.endpoint, "http://m");
        assert!(own.offline);
        assert_eq!(settings(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]).hub_cache, PathBuf::from("/c"));
    }

    #[test]
    fn the_token_comes_from_the_variable_then_the_file_and_is_never_shown() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "from-file\n").unwrap();
        let place = home.path().to_str().unwrap();
        let from_file = settings(&[("HF_HOME", place)]);
        assert_eq!(from_file.token.as_ref().unwrap().bearer(), "Bearer from-file");
        let from_var = settings(&[("HF_HOME", place), ("HF_TOKEN", " secret ")]);
        assert_eq!(from_var.token.as_ref().unwrap().bearer(), "Bearer secret");
        assert!(!format!("{from_var:?}").contains("secret"));
    }
}
