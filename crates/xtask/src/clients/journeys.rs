//! Which journeys there are, what each needs, and how it is started. They are told by their environment where the server is; each ends
//! with a line `test result: …` and with a status other than 0 if something failed.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::packages::Packages;
use super::server::{KEY, SERVED, SERVED_VECTORS};

/// Where they are.
pub(super) const FOLDER: &str = "crates/cli/tests/clients";

/// Something that a journey needs and a machine may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Component {
    Python,
    Node,
    Chromium,
    Promtool,
    Postgres,
}

impl Component {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Python => "python3 with venv",
            Self::Node => "node with npm",
            Self::Chromium => "chromium",
            Self::Promtool => "promtool",
            Self::Postgres => "PostgreSQL",
        }
    }
}

/// What a journey's program is.
enum Script {
    /// A Python program of our folder.
    Python(&'static str),
    /// A Node program of our folder, copied beside its packages.
    Node(&'static str),
    /// openai-python's own tests, with our plugin.
    OpenAiTests,
}

/// What a journey's server keeps its accounts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keeps {
    /// It has none, but static keys; all such journeys share one server.
    Nothing,
    /// A file, fresh for this journey.
    Sqlite,
    /// A database, fresh for this journey.
    Postgres,
}

impl Keeps {
    /// For people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Sqlite => "SQLite",
            Self::Postgres => "PostgreSQL",
        }
    }
}

pub(super) struct Journey {
    pub(super) name: &'static str,
    pub(super) needs: &'static [Component],
    pub(super) keeps: Keeps,
    script: Script,
}

/// Python for one of the programs that the portal shows.
const PORTAL: &[Component] = &[Component::Python, Component::Node, Component::Chromium];
const PORTAL_POSTGRES: &[Component] = &[Component::Python, Component::Node, Component::Chromium, Component::Postgres];

/// All of them, in the order in which they run.
pub(super) const JOURNEYS: &[Journey] = &[
    Journey { name: "openai (Python)", needs: &[Component::Python], keeps: Keeps::Nothing, script: Script::Python("openai_journey.py") },
    Journey {
        name: "anthropic (Python)",
        needs: &[Component::Python],
        keeps: Keeps::Nothing,
        script: Script::Python("anthropic_journey.py"),
    },
    Journey { name: "LiteLLM", needs: &[Component::Python], keeps: Keeps::Nothing, script: Script::Python("litellm_journey.py") },
    Journey { name: "LangChain", needs: &[Component::Python], keeps: Keeps::Nothing, script: Script::Python("langchain_journey.py") },
    Journey { name: "openai and anthropic (Node)", needs: &[Component::Node], keeps: Keeps::Nothing, script: Script::Node("journey.mjs") },
    Journey {
        name: "chat page in Chromium",
        needs: &[Component::Node, Component::Chromium],
        keeps: Keeps::Nothing,
        script: Script::Node("page.mjs"),
    },
    Journey { name: "portal on SQLite in Chromium", needs: PORTAL, keeps: Keeps::Sqlite, script: Script::Node("portal.mjs") },
    Journey {
        name: "portal on PostgreSQL in Chromium",
        needs: PORTAL_POSTGRES,
        keeps: Keeps::Postgres,
        script: Script::Node("portal.mjs"),
    },
    Journey { name: "openai-python's own tests", needs: &[Component::Python], keeps: Keeps::Nothing, script: Script::OpenAiTests },
    Journey {
        name: "payment (localstripe)",
        needs: &[Component::Python],
        keeps: Keeps::Nothing,
        script: Script::Python("payment_journey.py"),
    },
    Journey { name: "payment in Chromium (localstripe)", needs: PORTAL, keeps: Keeps::Nothing, script: Script::Node("payment.mjs") },
    Journey { name: "schemathesis", needs: &[Component::Python], keeps: Keeps::Nothing, script: Script::Python("schemathesis_journey.py") },
    Journey {
        name: "promtool",
        needs: &[Component::Python, Component::Promtool],
        keeps: Keeps::Nothing,
        script: Script::Python("promtool_journey.py"),
    },
];

/// The files of openai-python's tests that are about routes of ours; what of them is left out, the plugin says.
const OPENAI_TEST_FILES: &[&str] = &[
    "chat/test_completions.py",
    "test_completions.py",
    "test_embeddings.py",
    "test_models.py",
    "test_responses.py",
    "responses/test_input_items.py",
    "test_files.py",
    "test_batches.py",
];

/// What all journeys are told.
pub(super) struct Setting<'a> {
    pub(super) sources: &'a Path,
    pub(super) build: &'a Path,
    pub(super) root: &'a Path,
    pub(super) packages: &'a Packages,
    pub(super) url: &'a str,
    /// The binary under test, for journeys that start servers of their own.
    pub(super) binary: &'a Path,
    pub(super) long: bool,
}

impl Journey {
    /// The command that runs it.
    pub(super) fn command(&self, setting: &Setting) -> Result<Command> {
        let component = if matches!(self.script, Script::Node(_)) { Component::Node } else { Component::Python };
        let mut command = Command::new(setting.packages.program(component).context("a journey without its program")?);
        command.current_dir(setting.build);
        match self.script {
            Script::Python(script) => command.arg(setting.sources.join(script)),
            Script::Node(script) => command.arg(setting.build.join(script)),
            Script::OpenAiTests => {
                command.current_dir(setting.build.join("openai-source/openai"));
                // One process: the embedded model takes both cores anyhow, and so the plugin counts for all.
                command.args(["-m", "pytest", "-p", "openai_tests_plugin", "-p", "no:cacheprovider", "-q", "-n", "0"]);
                command.args(["--durations", "0", "--durations-min", "5"]);
                command.args(OPENAI_TEST_FILES.iter().map(|file| format!("tests/api_resources/{file}")));
                command.env("PYTHONPATH", setting.sources).env("TEST_API_BASE_URL", format!("{}/v1", setting.url))
            }
        };
        command.env("BITNET_URL", setting.url).env("BITNET_KEY", KEY).env("BITNET_ROOT", setting.root);
        command.env("BITNET_BINARY", setting.binary);
        command.env("BITNET_SERVED", SERVED).env("BITNET_SERVED_VECTORS", SERVED_VECTORS);
        // LiteLLM would fetch a price list otherwise.
        command.env("PYTHONDONTWRITEBYTECODE", "1").env("LITELLM_LOCAL_MODEL_COST_MAP", "True");
        command.env_remove("OPENAI_API_KEY").env_remove("OPENAI_BASE_URL").env_remove("ANTHROPIC_API_KEY");
        if setting.long {
            command.env("BITNET_LONG", "1");
        }
        command.env("BITNET_KIND", self.keeps.name()).env("BITNET_MAILS", super::server::mails(setting.build));
        let programs =
            [("BITNET_CHROMIUM", Component::Chromium), ("BITNET_PROMTOOL", Component::Promtool), ("BITNET_PYTHON", Component::Python)];
        for (name, component) in programs {
            if let Some(program) = setting.packages.program(component) {
                command.env(name, program);
            }
        }
        Ok(command)
    }
}
