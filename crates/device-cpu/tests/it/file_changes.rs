//! A model file that is truncated or rewritten under us: before loading it is a typed error, after loading it does not matter.
//! (A mapped file would end the process with SIGBUS.)

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use bitnet_checkpoint::Checkpoint;
use bitnet_device_cpu::{CpuDevice, CpuOptions};
use bitnet_model::{RunnerOptions, Session, TokenId, TransformerRunner};

use crate::golden::fixture;

fn copy_of_the_model(folder: &Path) {
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("tiny-llama-bitlinear").join(file), folder.join(file)).expect("the fixture is readable");
    }
}

fn session(checkpoint: &Checkpoint) -> Result<Session, bitnet_model::LoadError> {
    let device = CpuDevice::new(CpuOptions::default()).expect("a CPU");
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
    assert!(matches!(error, bitnet_model::LoadError::Checkpoint(_)), "{error}");
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
