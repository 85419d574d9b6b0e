// Passkeys: what the server asks goes to the browser, and what the browser brings back goes into the form.
const text = buffer => btoa(String.fromCharCode(...new Uint8Array(buffer))).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
const bytes = text => Uint8Array.from(atob(text.replaceAll('-', '+').replaceAll('_', '/')), letter => letter.charCodeAt(0));

async function asked(form) {
  const body = new URLSearchParams(new FormData(form));
  const reply = await fetch(form.dataset.begin, { method: 'POST', headers: { 'x-csrf-token': form.dataset.csrf ?? '' }, body });
  const options = reply.redirected ? null : await reply.json().catch(() => null);
  if (!reply.ok || !options || options.error) throw new Error(options?.error ?? 'That did not work: load the page anew.');
  return options;
}

async function create(options) {
  const known = options.excludeCredentials.map(one => ({ ...one, id: bytes(one.id) }));
  const user = { ...options.user, id: bytes(options.user.id) };
  const made = await navigator.credentials.create({ publicKey: { ...options, user, challenge: bytes(options.challenge), excludeCredentials: known } });
  return { client_data: text(made.response.clientDataJSON), device_data: text(made.response.getAuthenticatorData()) };
}

async function get(options) {
  const signed = await navigator.credentials.get({ publicKey: { ...options, challenge: bytes(options.challenge) } });
  const { clientDataJSON, authenticatorData, signature, userHandle } = signed.response;
  return {
    client_data: text(clientDataJSON), device_data: text(authenticatorData), signature: text(signature),
    credential: text(signed.rawId), person: userHandle ? text(userHandle) : '',
  };
}

for (const form of document.querySelectorAll('form[data-passkey]')) {
  const note = form.querySelector('[data-note]');
  const say = sentence => { note.textContent = sentence; note.hidden = false; };
  form.hidden = false;
  if (!globalThis.PublicKeyCredential) { form.querySelector('button').disabled = true; say('This browser has no passkeys.'); continue; }
  if (location.origin !== form.dataset.origin) {
    form.querySelector('button').disabled = true;
    say(`Passkeys belong to ${form.dataset.origin}: open this page there.`);
    continue;
  }
  form.addEventListener('submit', async event => {
    event.preventDefault();
    note.hidden = true;
    try {
      const answered = await (form.dataset.passkey === 'create' ? create : get)(await asked(form));
      for (const [name, value] of Object.entries(answered)) form.elements[name].value = value;
      // Not a secret's business any more.
      if (form.elements.password) form.elements.password.value = '';
      form.submit();
    } catch (error) {
      const isLeft = ['NotAllowedError', 'AbortError'].includes(error.name);
      say(error.name === 'InvalidStateError' ? 'This device has a passkey for you already.' : isLeft ? 'Nothing was done.' : error.message);
    }
  });
}
