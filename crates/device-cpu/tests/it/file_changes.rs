//! A model file that is truncated or rewritten under us: before loading it is a typed error; after loading it does not matter to
//! what is in memory, and is a typed error of the step that reads rows of a table from it. (A mapped file would end the process with
//! SIGBUS.)

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use bitnet_checkpoint::Checkpoint;
use bitnet_device_cpu::{CpuDevice, CpuOptions};
use bitnet_model::device::DeviceError;
use bitnet_model::{LoadError, RunnerError, RunnerOptions, Session, TokenId, TransformerRunner};

use crate::golden::fixture;

fn copy_of_the_model(folder: &Path) {
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("tiny-llama-bitlinear").join(file), folder.join(file)).expect("the fixture is readable");
    }
}

fn session(checkpoint: &Checkpoint) -> Result<Session, LoadError> {
    session_with(checkpoint, CpuOptions::default())
}

fn session_with(checkpoint: &Checkpoint, options: CpuOptions) -> Result<Session, LoadError> {
    let device = CpuDevice::new(options).expect("a CPU");
    let runner = TransformerRunner::load(device, checkpoint, RunnerOptions::single_sequence(64), &mut |_| {})?;
    Ok(Session::new(Box::new(runner)))
}

#[test]
fn file_truncated_between_open_and_load_is_an_error() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    copy_of_the_model(folder.path());
    let checkpoint = Checkpoint::open(folder.path()).expect("the model opens");
    let file = OpenOptions::new().write(true).open(folder.path().join("model.safetensors")).expect("writable");
    file.set_len(5000).expect("truncated");
    let error = session(&checkpoint).err().expect("half a file cannot load");
    assert!(matches!(error, LoadError::Checkpoint(_) | LoadError::Device(DeviceError::TableUnreadable { .. })), "{error}");
}

#[test]
fn file_rewritten_while_text_is_generated_changes_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    copy_of_the_model(folder.path());
    let checkpoint = Checkpoint::open(folder.path()).expect("the model opens");
    let mut session = session(&checkpoint).expect("the model loads");
    let prompt: Vec<TokenId> = (1..9).map(TokenId).collect();
    session.prefill(&prompt).expect("fits");
    let expected = session.decode(TokenId(40)).expect("fits").to_vec();

    session.truncate(prompt.len());
    let path = folder.path().join("model.safetensors");
    let mut file: File = OpenOptions::new().write(true).open(&path).expect("writable");
    file.seek(SeekFrom::Start(4096)).expect("seekable");
    file.write_all(&[0xff; 4096]).expect("written");
    file.set_len(8192).expect("truncated");
    std::fs::remove_file(&path).expect("removed");
    assert_eq!(session.decode(TokenId(40)).expect("fits"), expected);
}

/// A model none of whose tables is in memory, what it says to a prompt, and its file.
fn model_with_tables_on_file(folder: &Path) -> (Session, Vec<f32>, File) {
    copy_of_the_model(folder);
    let checkpoint = Checkpoint::open(folder).expect("the model opens");
    let options = CpuOptions { resident_table_bytes_max: 0, ..CpuOptions::default() };
    let mut session = session_with(&checkpoint, options).expect("the model loads");
    let expected = session.decode(TokenId(40)).expect("fits").to_vec();
    session.truncate(0);
    (session, expected, OpenOptions::new().write(true).open(folder.join("model.safetensors")).expect("writable"))
}

fn assert_unreadable(outcome: Result<&[f32], RunnerError>) {
    let error = outcome.expect_err("a step on half a table is no step");
    assert!(matches!(error, RunnerError::Device(DeviceError::TableUnreadable { .. })), "{error}");
}

#[test]
fn tables_on_file_give_the_logits_of_tables_in_memory() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (mut on_file, expected, _) = model_with_tables_on_file(folder.path());
    let checkpoint = Checkpoint::open(folder.path()).expect("the model opens");
    assert_eq!(session(&checkpoint).expect("the model loads").decode(TokenId(40)).expect("fits"), expected);
    // Its name may go while it is open.
    std::fs::remove_file(folder.path().join("model.safetensors")).expect("removed");
    assert_eq!(on_file.decode(TokenId(40)).expect("fits"), expected);
}

#[test]
fn file_truncated_while_text_is_generated_is_an_error_of_the_step() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (mut session, _, file) = model_with_tables_on_file(folder.path());
    file.set_len(100).expect("truncated");
    assert_unreadable(session.decode(TokenId(40)));
    assert_unreadable(session.decode(TokenId(40)));
}

#[test]
fn file_rewritten_while_tables_are_read_from_it_is_an_error_of_the_step() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (mut session, expected, mut file) = model_with_tables_on_file(folder.path());
    let before = file.metadata().and_then(|metadata| metadata.modified()).expect("a time");
    file.seek(SeekFrom::Start(4096)).expect("seekable");
    file.write_all(&[0xff; 4096]).expect("written");
    // Clocks of file systems are coarse.
    file.set_modified(SystemTime::now() + Duration::from_secs(2)).expect("a time");
    assert_unreadable(session.decode(TokenId(40)));
    // A session that failed goes on where its file is what it was.
    std::fs::copy(fixture("tiny-llama-bitlinear").join("model.safetensors"), folder.path().join("model.safetensors")).expect("copied");
    file.set_modified(before).expect("a time");
    assert_eq!(session.decode(TokenId(40)).expect("fits"), expected);
}
