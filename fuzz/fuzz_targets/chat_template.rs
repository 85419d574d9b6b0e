//! Fuzz target: the input is a chat template. It must compile or be refused, and render hostile chats within its limits of work,
//! depth and output; that it cannot reach files or the environment follows from what its engine is given.
#![no_main]

use bitnet_fuzz::within_budget;
use bitnet_model::limits::TEMPLATE_OUTPUT_BYTES_MAX;
use bitnet_model::text::{ChatTemplate, Message, RenderOptions};
use libfuzzer_sys::fuzz_target;

/// A rendering may fill its output, and hold values as large on the way there, whatever the length of its source.
const BYTES_PER_INPUT_BYTE: usize = 8 * TEMPLATE_OUTPUT_BYTES_MAX;

fuzz_target!(|source: &str| {
    within_budget(source.as_bytes(), BYTES_PER_INPUT_BYTE, || {
        let Ok(template) = ChatTemplate::compile(source, Some("<s>"), None) else { return };
        let chats = [
            vec![],
            vec![Message::new("system", "{{ 7 * 7 }}"), Message::new("user", "Hello"), Message::new("assistant", "")],
            vec![Message::new("tool", "</think>\u{0}\u{10ffff}"), Message::new("", "{% for %}")],
        ];
        for (messages, add_generation_prompt) in chats.iter().zip([true, false, true]) {
            let options = RenderOptions { add_generation_prompt, now_unix_seconds: Some(0), ..RenderOptions::default() };
            if let Ok(prompt) = template.render(messages, &options) {
                assert!(prompt.len() <= TEMPLATE_OUTPUT_BYTES_MAX);
            }
        }
    });
});
