//! `bitnet serve --check-config`: everything that a start would find wrong, found without one. Settings, certificate and key, the place
//! for files, every model with its tokenizer and template, and whether draft models fit. All faults are told, not only the first. No
//! weights are loaded, nothing is written and no address is taken, so it may run beside the server that it is about.

use anyhow::Context;
use bitnet_server::{Config, OpenAccess};

use crate::arguments::GlobalArguments;
use crate::failure::{Invalid, report};
use crate::terminal::Terminal;
use crate::verbs::serve::ServeArguments;
use crate::verbs::serve::settings::Settings;

/// Says what is there on standard output and what is wrong on standard error.
pub(super) fn perform(arguments: &ServeArguments, global: &GlobalArguments, terminal: &Terminal) -> anyhow::Result<()> {
    let mut faults = Vec::new();
    let file = arguments.config.as_deref().map(Settings::read).transpose();
    let file = file.unwrap_or_else(|fault| {
        faults.push(fault);
        None
    });
    let mut settings = arguments.settings.clone().over(file.unwrap_or_default());
    let served = arguments.served.clone().over(settings.served());
    let platform = arguments.platform_of(&mut settings).unwrap_or_else(|fault| {
        faults.push(fault);
        None
    });
    let (config, wrong) = settings.checked();
    faults.extend(wrong);
    faults.extend(config.file_faults().into_iter().map(anyhow::Error::from));
    let mut found = describe(&config);
    if platform.is_some() {
        found.push("every caller needs a key of the platform".into());
    }
    match served.check(global, terminal) {
        Ok(models) => models.into_iter().for_each(|model| match model {
            Ok(said) => found.push(said),
            Err(fault) => faults.push(fault),
        }),
        Err(fault) => faults.push(fault),
    }
    for line in found {
        println!("{line}");
    }
    for fault in &faults {
        report(fault, terminal, &mut std::io::stderr().lock()).context("cannot write to standard error")?;
    }
    match faults.len() {
        0 => {
            println!("the configuration is valid");
            Ok(())
        }
        n_faults => Err(Invalid { n_faults }.into()),
    }
}

fn describe(config: &Config) -> Vec<String> {
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let access = match (config.api_keys.len(), config.open_access) {
        (0, OpenAccess::LoopbackOnly) => "without keys, from this machine only".to_string(),
        (0, OpenAccess::Anywhere) => "without keys, from anywhere".to_string(),
        (1, _) => "with 1 key".to_string(),
        (n_keys, _) => format!("with {n_keys} keys"),
    };
    let mut found = vec![format!("listens on {scheme}://{}, {access}", config.listen)];
    let keys = config.api_keys.iter().map(|key| match key.requests_per_minute {
        Some(n) => format!("{} ({n} requests a minute)", key.name),
        None => key.name.clone(),
    });
    let keys: Vec<String> = keys.collect();
    if !keys.is_empty() {
        found.push(format!("keys: {}", keys.join(", ")));
    }
    if let Some(tls) = &config.tls {
        found.push(format!("certificate {} with key {}", tls.certificate.display(), tls.key.display()));
    }
    match &config.data_folder {
        Some(folder) => found.push(format!("files and batches in {}", folder.display())),
        None => found.push("no files and batches: no data folder".into()),
    }
    if let Some(endpoint) = &config.otlp_endpoint {
        found.push(format!("traces to {endpoint}"));
    }
    found
}
