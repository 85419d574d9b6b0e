// What a person does on the chat page, in Chromium, with keyboard and mouse. BITNET_SCREENSHOTS names a folder for pictures of it.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { chromium } from 'playwright-core';
import { run } from './journeys.mjs';

const { BITNET_URL: url, BITNET_KEY: key, BITNET_CHROMIUM: executablePath, BITNET_SCREENSHOTS: screenshots } = process.env;
const profile = mkdtempSync(join(tmpdir(), 'bitnet-page-'));
const args = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update',
  '--disable-sync', '--headless',
];
const path = executablePath.includes('/') ? executablePath : `/usr/bin/${executablePath}`;
const browser = await chromium.launchPersistentContext(profile, { executablePath: path, args, viewport: { width: 1000, height: 720 }, colorScheme: 'light' });
const page = browser.pages()[0] ?? await browser.newPage();
const faults = [];
page.on('pageerror', error => faults.push(error.message));
page.setDefaultTimeout(30_000);
const picture = name => screenshots && page.screenshot({ path: join(screenshots, `chat-${name}.png`) });
const last = kind => page.locator(`.turn.${kind}`).last();
const idle = () => page.locator('#send:not([hidden])').waitFor();

async function limit(n) {
  await page.click('summary');
  await page.fill('#limit', String(n));
  await page.keyboard.press('Escape');
}

const journeys = {
  async keyIsAskedFor() {
    await page.goto(url);
    await page.locator('.turn.error').waitFor();
    assert.match(await last('error').innerText(), /API key/);
    assert.equal(await page.evaluate(() => document.activeElement.id), 'key');
    await picture('key');
    await page.keyboard.type(key);
    await page.keyboard.press('Tab');
    await page.waitForFunction(() => document.querySelector('#model').options.length > 0);
    assert.equal(await page.locator('#model').inputValue(), 'tales');
    await page.keyboard.press('Escape');
    assert.equal(await page.locator('.turn').count(), 0, 'the error is gone');
    assert.ok(await page.locator('#empty').isVisible());
    await picture('empty');
  },
  async replyIsWrittenAsItComes() {
    await limit(24);
    await page.focus('#text');
    await page.keyboard.type('Tell me a short story.');
    await page.keyboard.press('Shift+Enter');
    await page.keyboard.type('About a dog.');
    const lengths = await page.evaluate(() => new Promise(done => {
      const seen = new Set();
      new MutationObserver(() => {
        const turn = [...document.querySelectorAll('.assistant')].at(-1);
        if (turn) seen.add(turn.textContent.length);
        if (turn && !turn.classList.contains('writing')) done(seen.size);
      }).observe(document.querySelector('#log'), { subtree: true, childList: true, attributes: true });
      document.querySelector('#form').requestSubmit();
    }));
    assert.ok(lengths > 3, `only ${lengths} pieces`);
    assert.equal(await last('user').innerText(), 'Tell me a short story.\nAbout a dog.');
    assert.match(await last('assistant').innerText(), /tokens/);
    assert.equal(await page.evaluate(() => document.activeElement.id), 'text');
    await picture('light');
  },
  async conversationGoesOn() {
    await page.fill('#text', 'And then?');
    const sent = page.waitForRequest(request => request.url().endsWith('/v1/chat/completions'));
    await page.keyboard.press('Enter');
    const { messages, max_tokens: limited } = (await sent).postDataJSON();
    assert.deepEqual(messages.map(message => message.role), ['user', 'assistant', 'user']);
    assert.ok(!messages[1].content.includes('tokens/s') && limited === 24);
    await idle();
  },
  async replyIsStopped() {
    // The embedded model ends its stories when it likes; these go on until they are stopped.
    const endless = request => ({ ...request.postDataJSON(), max_tokens: 1500, ignore_eos: true });
    await page.route('**/v1/chat/completions', route => route.continue({ postData: JSON.stringify(endless(route.request())) }));
    await page.fill('#text', 'Tell me a long story.');
    await page.keyboard.press('Enter');
    await page.waitForFunction(() => [...document.querySelectorAll('.assistant')].at(-1)?.textContent.length > 20);
    await picture('writing');
    await page.click('#stop');
    await idle();
    assert.match(await last('assistant').innerText(), /stopped$/);
    await page.fill('#text', 'Another.');
    await page.keyboard.press('Enter');
    await page.locator('#stop:not([hidden])').waitFor();
    await page.keyboard.press('Escape');
    await idle();
    await page.unroute('**/v1/chat/completions');
  },
  async refusalIsShown() {
    await page.click('#new');
    await limit(16);
    // A model that was unloaded since the page listed it.
    await page.evaluate(() => { document.querySelector('#model').options[0].value = 'gone'; });
    await page.fill('#text', 'Hello');
    await page.keyboard.press('Enter');
    await page.locator('.turn.error').waitFor();
    assert.match(await last('error').innerText(), /`gone` does not exist/);
    assert.equal(await page.inputValue('#text'), 'Hello');
    await picture('error');
    await page.evaluate(() => { document.querySelector('#model').options[0].value = 'tales'; });
    await page.keyboard.press('Enter');
    await idle();
  },
  async textIsNeverMarkup() {
    await page.fill('#text', '<img src=x onerror=alert(1)><b>bold</b>');
    await page.keyboard.press('Enter');
    await idle();
    assert.equal(await page.locator('#log img, #log b').count(), 0);
  },
  async themeAndNarrowScreen() {
    const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const light = await background();
    await page.emulateMedia({ colorScheme: 'dark' });
    assert.notEqual(await background(), light);
    await picture('dark');
    await page.click('summary');
    await page.selectOption('#theme', 'light');
    assert.equal(await background(), light);
    await picture('settings');
    await page.selectOption('#theme', 'dark');
    await page.keyboard.press('Escape');
    await page.setViewportSize({ width: 390, height: 780 });
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), 'nothing sticks out at the side');
    await page.click('summary');
    const panel = await page.locator('.panel').boundingBox();
    assert.ok(panel.x >= 0 && panel.x + panel.width <= 390, 'the settings are on the screen');
    await picture('narrow');
    await page.keyboard.press('Escape');
  },
  async descriptionIsReadable() {
    await page.goto(`${url}/docs`);
    await page.locator('details').first().waitFor();
    assert.ok(await page.locator('details').count() > 25);
    await page.locator('summary', { hasText: '/v1/chat/completions' }).click();
    assert.ok(await page.locator('td', { hasText: 'messages *' }).first().isVisible());
    await page.setViewportSize({ width: 1000, height: 720 });
    await picture('docs');
    assert.deepEqual(faults, []);
  },
};

const failed = await run(journeys, 'chat page');
await browser.close();
rmSync(profile, { recursive: true, force: true });
process.exit(failed ? 1 : 0);
