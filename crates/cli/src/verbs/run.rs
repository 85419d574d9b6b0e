//! `bitnet run`: reads a prompt and writes on.

use std::io::{IsTerminal, Write};

use bitnet_checkpoint::Checkpoint;
use bitnet_model::TokenId;
use bitnet_model::text::{AddSpecial, ChatTemplate, Message, RenderOptions, TextError, Tokenizer};
use clap::Args;
use serde_json::json;

use crate::arguments::{DeviceArguments, GlobalArguments, ModelArguments, SamplingArguments};
use crate::clock;
use crate::failure::Misuse;
use crate::generation::{Finish, Generated, GenerationOptions, generate};
use crate::interrupt::Interrupt;
use crate::open::{load_session, open_to_write, require_text_model};
use crate::standard_input;
use crate::terminal::{Output, Style, Terminal};
use crate::token_input::parse_ids;

/// Continue a text
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bitnet run \"Once upon a time\"\n  bitnet run -m hf:microsoft/bitnet-b1.58-2B-4T-gguf --chat \"Why is the sky blue?\"\n  bitnet run -n 500 < beginning.txt"
)]
pub(crate) struct RunArguments {
    /// The text to continue; without it, or as -, standard input
    #[arg(value_name = "PROMPT", conflicts_with = "ids")]
    prompt: Option<String>,
    #[command(flatten)]
    model: ModelArguments,
    /// Most tokens to write
    #[arg(short, long = "n-tokens", visible_alias = "max-tokens", value_name = "N", default_value_t = 256)]
    n_tokens: usize,
    /// Wrap the prompt in the model's chat template, as a question to answer
    #[arg(long)]
    chat: bool,
    /// With --chat: what the model is told before the prompt
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Continue the prompt as it stands; this is the default
    #[arg(long, conflicts_with = "chat", hide_short_help = true)]
    raw: bool,
    /// Token ids instead of text, as 1,2,3
    #[arg(long, value_name = "IDS", conflicts_with = "chat")]
    ids: Option<String>,
    /// Print one JSON object when done, instead of text as it comes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingArguments,
    #[command(flatten)]
    device: DeviceArguments,
}

/// Generates and prints.
pub(crate) fn perform(arguments: &RunArguments, global: &GlobalArguments, terminal: &Terminal) -> anyhow::Result<()> {
    // Before the model is opened, which may take a download.
    let text = if arguments.ids.is_some() { String::new() } else { prompt_text(arguments.prompt.as_deref())? };
    let checkpoint = open_to_write(&arguments.model, global, terminal)?;
    require_text_model(&checkpoint)?;
    let files = checkpoint.tokenizer_files();
    let sampling = arguments.sampling.params(&files.generation);
    sampling.validate()?;
    let (tokenizer, prompt) = match &arguments.ids {
        Some(ids) => (load_tokenizer_if_any(&checkpoint)?, parse_ids(ids)?),
        None => {
            let tokenizer = Tokenizer::load(files)?;
            let prompt = encode(arguments, &checkpoint, &tokenizer, (&text, terminal))?;
            (Some(tokenizer), prompt)
        }
    };
    let interrupt = Interrupt::install();
    let n_context = prompt.len().saturating_add(arguments.n_tokens);
    let mut session = load_session(&checkpoint, &arguments.device.for_sampling(&sampling)?, n_context, terminal)?;
    let eos: Vec<TokenId> = files.generation.eos_token_ids.iter().copied().map(TokenId).collect();
    let options = GenerationOptions {
        tokenizer: tokenizer.as_ref(),
        eos: tokenizer.as_ref().map_or(&eos, |tokenizer| tokenizer.eos()),
        sampling,
        stop: &arguments.sampling.stop,
        n_tokens_max: arguments.n_tokens,
        interrupt: &interrupt,
    };
    let streams = !arguments.json && tokenizer.is_some();
    if streams && !arguments.chat && std::io::stdout().is_terminal() {
        write!(Output, "{}", terminal.on_stdout(Style::Bold, &text))?;
    }
    let mut show = |text: &str| if streams { Output.write_all(text.as_bytes()).and_then(|()| Output.flush()) } else { Ok(()) };
    let generated = generate(&mut session, &prompt, &options, terminal, &mut show)?;
    if arguments.json {
        let model = arguments.model.name();
        let description = session.runner().device();
        let device = json!({ "name": description.name, "isa": description.isa, "n_threads": description.n_threads });
        writeln!(Output, "{}", report(model, &prompt, &generated, (options.sampling.seed, device)))?;
        return Ok(());
    }
    if tokenizer.is_none() {
        let ids: Vec<String> = generated.token_ids.iter().map(ToString::to_string).collect();
        write!(Output, "{}", ids.join(","))?;
    }
    writeln!(Output)?;
    let seed = (options.sampling.temperature > 0.0).then_some(options.sampling.seed);
    note_rates(&generated, seed, terminal);
    Ok(())
}

fn load_tokenizer_if_any(checkpoint: &Checkpoint) -> anyhow::Result<Option<Tokenizer>> {
    match Tokenizer::load(checkpoint.tokenizer_files()) {
        Ok(tokenizer) => Ok(Some(tokenizer)),
        Err(TextError::NoTokenizer) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// PROMPT, or standard input without its last line break.
fn prompt_text(argument: Option<&str>) -> anyhow::Result<String> {
    let help = "write bitnet run \"Once upon a time\", or pipe a text into it";
    let text = match argument {
        Some(text) if text != "-" => text.to_string(),
        None if std::io::stdin().is_terminal() => return Err(Misuse::new("there is no prompt", help).into()),
        _ => {
            let text = standard_input::read_text()?;
            let text = text.strip_suffix('\n').unwrap_or(&text);
            text.strip_suffix('\r').unwrap_or(text).to_string()
        }
    };
    if text.is_empty() { Err(Misuse::new("the prompt is empty", help).into()) } else { Ok(text) }
}

fn encode(
    arguments: &RunArguments,
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    (text, terminal): (&str, &Terminal),
) -> anyhow::Result<Vec<TokenId>> {
    if !arguments.chat {
        return Ok(tokenizer.encode(text, AddSpecial::Yes)?);
    }
    let template = load_template(checkpoint, terminal)?;
    let system = arguments.system.as_deref().map(|system| Message::new("system", system));
    let messages: Vec<Message> = system.into_iter().chain([Message::new("user", text)]).collect();
    let options = RenderOptions { add_generation_prompt: true, now_unix_seconds: clock::now_unix_seconds(), ..RenderOptions::default() };
    Ok(tokenizer.encode_chat(&template.render(&messages, &options)?)?)
}

/// The model's chat template.
pub(super) fn load_template(checkpoint: &Checkpoint, terminal: &Terminal) -> anyhow::Result<ChatTemplate> {
    let files = checkpoint.tokenizer_files();
    let Some(template) = ChatTemplate::load(files)? else {
        let what = "this model has no chat template: it continues texts and does not converse";
        return Err(Misuse::new(what, "`bitnet run PROMPT` continues a text").into());
    };
    if let Some(remark) = &files.chat_template_remark {
        terminal.note(remark);
    }
    Ok(template)
}

fn report(model: &str, prompt: &[TokenId], generated: &Generated, (seed, device): (u64, serde_json::Value)) -> serde_json::Value {
    let ids = |tokens: &[TokenId]| tokens.iter().map(|token| token.0).collect::<Vec<_>>();
    json!({
        "model": model,
        "text": generated.text,
        "finish": generated.finish,
        "prompt_token_ids": ids(prompt),
        "token_ids": ids(&generated.token_ids),
        "seed": seed,
        "prefill": generated.prefill.json(),
        "decode": generated.decode.json(),
        "device": device,
    })
}

/// `prefill 12 tokens, 345.6 tokens/s · decode 255 tokens, 78.9 tokens/s`, and why the text ended if that was not its end.
pub(super) fn note_rates(generated: &Generated, seed: Option<u64>, terminal: &Terminal) {
    let (prefill, decode) = (generated.prefill, generated.decode);
    let finish = match generated.finish {
        Finish::EndOfText | Finish::Length | Finish::StopString => "",
        Finish::ContextFull => " · the context is full",
        Finish::Interrupted => " · interrupted",
    };
    let seed = seed.map(|seed| format!(" · seed {seed}")).unwrap_or_default();
    terminal.note(&format!(
        "prefill {} tokens, {:.1} tokens/s · decode {} tokens, {:.1} tokens/s{seed}{finish}",
        prefill.n_tokens,
        prefill.tokens_per_second(),
        decode.n_tokens,
        decode.tokens_per_second()
    ));
}
