//! What `MODEL` on the command line means: the embedded model, a folder or file, or a name on a hub.

use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

use crate::hub::{self, HubError, HubName, HubOptions};
use crate::terminal::Terminal;

/// The word that names the embedded model.
pub(crate) const EMBEDDED: &str = "embedded";

/// A model, as named by the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ModelSource {
    /// The one inside the binary.
    Embedded,
    /// A folder, or a file.
    Path(PathBuf),
    /// `hf:owner/name[@revision][:file.gguf]`.
    Hub(HubName),
}

/// A model, ready to be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ModelLocation {
    /// The one inside the binary.
    Embedded,
    /// A folder or file that exists.
    Path(PathBuf),
}

/// `MODEL` leads nowhere.
#[derive(Debug, Error)]
pub(crate) enum ModelSourceError {
    /// Neither a path nor a name.
    #[error("no model at `{}`", path.display())]
    NotFound { path: PathBuf, hub_name: Option<HubName> },
    /// The hub refused.
    #[error(transparent)]
    Hub(#[from] HubError),
}

impl ModelSourceError {
    /// What to do next.
    pub(crate) fn help(&self) -> String {
        const FORMS: &str = "MODEL is a folder with config.json and *.safetensors, a .gguf file, or hf:owner/name[@revision][:file.gguf]";
        match self {
            Self::NotFound { hub_name: Some(name), .. } => format!("to download it, write {name}\nhelp: {FORMS}"),
            Self::NotFound { hub_name: None, .. } => format!("{FORMS}; without one, the embedded model runs"),
            Self::Hub(error) => error.help(),
        }
    }
}

impl FromStr for ModelSource {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        match text.strip_prefix("hf:") {
            Some(name) => Ok(Self::Hub(name.parse()?)),
            None if text == EMBEDDED => Ok(Self::Embedded),
            None => Ok(Self::Path(PathBuf::from(text))),
        }
    }
}

impl ModelSource {
    /// Finds the model, downloading it if need be.
    pub(crate) fn locate(&self, hub_options: &HubOptions, terminal: &Terminal) -> Result<ModelLocation, ModelSourceError> {
        match self {
            Self::Embedded => Ok(ModelLocation::Embedded),
            Self::Path(path) if path.exists() => Ok(ModelLocation::Path(path.clone())),
            Self::Path(path) => {
                let hub_name = path.to_str().and_then(|text| text.parse().ok());
                Err(ModelSourceError::NotFound { path: path.clone(), hub_name })
            }
            Self::Hub(name) => Ok(ModelLocation::Path(hub::resolve(name, hub_options, terminal)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_source_forms_are_told_apart() {
        assert_eq!("embedded".parse::<ModelSource>().expect("valid"), ModelSource::Embedded);
        assert_eq!("./embedded".parse::<ModelSource>().expect("valid"), ModelSource::Path("./embedded".into()));
        assert_eq!("a/b.gguf".parse::<ModelSource>().expect("valid"), ModelSource::Path("a/b.gguf".into()));
        assert!(matches!("hf:a/b@c".parse::<ModelSource>().expect("valid"), ModelSource::Hub(_)));
        assert!("hf:../b".parse::<ModelSource>().is_err());
    }
}
