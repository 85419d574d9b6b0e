// A conversation with a model, as any client has it: with a key that the portal lends for some minutes.
const $ = id => document.getElementById(id);
const form = $('playground');
let turns = [], running = null, lent = null;

async function key() {
  const project = $('project').value;
  if (lent && lent.project === project && Date.now() < lent.until) return lent.key;
  const body = new URLSearchParams({ project });
  const reply = await fetch(form.dataset.keyUrl, { method: 'POST', headers: { 'x-csrf-token': form.dataset.csrf }, body });
  // A session that has ended leads to the page to sign in, which is no key.
  if (!reply.ok || reply.redirected) throw new Error(reply.redirected || reply.status === 403 ? 'Sign in again: this session has ended.' : 'No key can be lent just now.');
  const answer = await reply.json();
  lent = { project, key: answer.key, until: Date.now() + (answer.expires_in - 30) * 1000 };
  return lent.key;
}

function say(kind, text = '') {
  $('empty').hidden = true;
  const turn = document.createElement('div');
  turn.className = 'turn ' + kind;
  turn.textContent = text;
  if (kind === 'error') turn.setAttribute('role', 'alert');
  $('log').append(turn);
  $('log').scrollTop = $('log').scrollHeight;
  return turn;
}

// Server-sent events, wherever the network cuts them: lines end with \n, \r\n or \r, an event with an empty line; lines of data belong
// together. A stream without its [DONE] has broken off.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '', data = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error('The answer broke off: the connection was lost.');
    // A \r at the end may be half of a line's end.
    const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith('data:')) data.push(line.slice(line[5] === ' ' ? 6 : 5));
      if (line !== '' || data.length === 0) continue;
      const text = data.join('\n');
      data = [];
      if (text === '[DONE]') return;
      yield JSON.parse(text);
    }
  }
}

async function ask(path, body, signal) {
  const headers = { 'content-type': 'application/json', authorization: 'Bearer ' + await key() };
  return fetch(path, { method: 'POST', headers, signal, body });
}

async function answer(turn, signal) {
  const limit = $('limit').valueAsNumber, temperature = $('temperature').valueAsNumber, system = $('system').value.trim();
  const chats = $('model').selectedOptions[0].dataset.chat === 'yes';
  const last = turns.at(-1).content;
  const messages = system ? [{ role: 'system', content: system }, ...turns] : turns;
  const body = {
    model: $('model').value, stream: true, stream_options: { include_usage: true }, ...(chats ? { messages } : { prompt: last }),
    ...(limit > 0 && { max_tokens: limit }), ...(temperature >= 0 && { temperature }),
  };
  const path = chats ? '/v1/chat/completions' : '/v1/completions';
  let reply = await ask(path, JSON.stringify(body), signal);
  if (reply.status === 401) {
    // Lent keys end with the server that lent them.
    lent = null;
    reply = await ask(path, JSON.stringify(body), signal);
  }
  if (!reply.ok) throw new Error((await reply.json().catch(() => null))?.error?.message ?? `status ${reply.status}`);
  // A model without conversation goes on with the text.
  if (!chats) turn.textContent = last;
  const started = performance.now();
  let usage = null;
  for await (const event of events(reply.body)) {
    if (event.error) throw new Error(event.error.message);
    usage = event.usage ?? usage;
    const text = event.choices?.[0]?.delta?.content ?? event.choices?.[0]?.text ?? '';
    if (text) turn.append(text);
    $('log').scrollTop = $('log').scrollHeight;
  }
  const seconds = (performance.now() - started) / 1000;
  return usage ? `${usage.prompt_tokens} + ${usage.completion_tokens} tokens, ${(usage.completion_tokens / seconds).toFixed(1)} a second` : '';
}

async function send(text) {
  const conversation = turns;
  turns.push({ role: 'user', content: text });
  say('user', text);
  const turn = say('assistant writing');
  const own = running = new AbortController();
  $('log').setAttribute('aria-busy', 'true');
  $('send').hidden = true;
  $('stop').hidden = false;
  let note = '';
  try {
    note = await answer(turn, own.signal);
  } catch (error) {
    if (error.name === 'AbortError') note = 'stopped';
    else { say('error', error instanceof TypeError ? 'The server cannot be reached.' : error.message); lent = null; }
  }
  turn.classList.remove('writing');
  // A conversation that was left is not gone on with.
  if (conversation !== turns) return;
  if (turn.textContent) turns.push({ role: 'assistant', content: turn.textContent });
  else { turn.remove(); turns.pop(); }
  if (note && turn.isConnected) turn.append(Object.assign(document.createElement('div'), { className: 'hint', textContent: note }));
  rest();
}

// Nothing is being written.
function rest() {
  running = null;
  $('log').setAttribute('aria-busy', 'false');
  $('send').hidden = false;
  $('stop').hidden = true;
  $('text').focus();
}

form.addEventListener('submit', event => {
  event.preventDefault();
  const text = $('text').value.trim();
  if (!text || running || !$('model').value) return;
  $('text').value = '';
  send(text);
});
$('text').addEventListener('keydown', event => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) { event.preventDefault(); form.requestSubmit(); }
});
$('stop').addEventListener('click', () => running?.abort());
document.addEventListener('keydown', event => { if (event.key === 'Escape') running?.abort(); });
$('new').addEventListener('click', () => {
  running?.abort();
  turns = [];
  $('log').replaceChildren($('empty'));
  $('empty').hidden = false;
  rest();
});
