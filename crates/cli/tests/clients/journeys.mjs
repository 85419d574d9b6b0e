// Runs journeys one after another and says how they went, in the words of a Rust test. Yields how many failed.
export async function run(journeys, kind) {
  let failed = 0;
  for (const [name, journey] of Object.entries(journeys)) {
    try {
      await journey();
      console.log(`${name}: ok`);
    } catch (error) {
      failed += 1;
      console.log(`${name}: FAILED: ${error.stack}`);
    }
  }
  console.log(`test result: ${failed ? 'FAILED' : 'ok'}. ${Object.keys(journeys).length - failed} passed; ${failed} failed; ${kind}`);
  return failed;
}
