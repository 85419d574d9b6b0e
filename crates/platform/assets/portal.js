// What every page does with a script: buttons that copy, and a menu that is closed on narrow screens. Nothing needs it.
for (const button of document.querySelectorAll('[data-copy]')) {
  button.hidden = false;
  const label = button.textContent;
  button.addEventListener('click', async () => {
    const source = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent.trim());
      button.textContent = 'Copied';
    } catch {
      // Without the right to the clipboard, the text is at least selected.
      getSelection().selectAllChildren(source);
      button.textContent = 'Selected';
    }
    setTimeout(() => { button.textContent = label; }, 2000);
  });
}
const side = document.querySelector('.side');
if (side && matchMedia('(max-width: 54rem)').matches) side.open = false;
// A form that was sent is not sent again by a second click; a page that comes back from the browser's memory is whole again.
document.addEventListener('submit', event => {
  if (event.target.method !== 'post' || event.defaultPrevented) return;
  const buttons = event.target.querySelectorAll('button');
  setTimeout(() => { for (const button of buttons) button.disabled = true; });
});
addEventListener('pageshow', event => {
  if (event.persisted) for (const button of document.querySelectorAll('form[method=post] button')) button.disabled = false;
});
