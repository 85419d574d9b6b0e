// A card, asked for by Stripe's own field: its number goes to Stripe, and a name for it comes into the form.
const form = document.getElementById('card-form');
const note = form?.querySelector('[data-note]');
const say = sentence => { note.textContent = sentence; note.hidden = false; };
if (form) {
  form.hidden = false;
  if (typeof Stripe === 'undefined') {
    say('Stripe cannot be reached: load the page anew in a moment.');
    form.querySelector('button').disabled = true;
  } else {
    const style = getComputedStyle(document.documentElement);
    const stripe = Stripe(form.dataset.key);
    const card = stripe.elements().create('card', { style: { base: { color: style.getPropertyValue('--ink').trim() || '#222', fontSize: '16px' } } });
    card.mount('#card-field');
    form.addEventListener('submit', async event => {
      event.preventDefault();
      const button = form.querySelector('button');
      note.hidden = true;
      button.disabled = true;
      try {
        const reply = await fetch(form.dataset.begin, { method: 'POST', headers: { 'x-csrf-token': form.dataset.csrf }, body: new URLSearchParams() });
        const begun = reply.redirected ? null : await reply.json().catch(() => null);
        if (!reply.ok || !begun?.client_secret) throw new Error(begun?.error ?? 'That did not work: load the page anew.');
        const { error, setupIntent } = await stripe.confirmCardSetup(begun.client_secret, { payment_method: { card } });
        if (error) throw new Error(error.message);
        form.elements.payment_method.value = typeof setupIntent.payment_method === 'string' ? setupIntent.payment_method : setupIntent.payment_method.id;
        form.submit();
      } catch (error) {
        say(error.message);
        button.disabled = false;
      }
    });
  }
}
