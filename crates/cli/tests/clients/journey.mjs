// What programs that use the official Node clients do, against a running server.
import assert from 'node:assert/strict';
import Anthropic from '@anthropic-ai/sdk';
import OpenAI from 'openai';
import { run } from './journeys.mjs';

const { BITNET_URL: url, BITNET_KEY: apiKey, BITNET_SERVED: model } = process.env;
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: url, apiKey, maxRetries: 0 });
const messages = [{ role: 'user', content: 'Tell me a short story.' }];

const journeys = {
  async chat() {
    const whole = await openai.chat.completions.create({ model, messages, max_completion_tokens: 12, seed: 1 });
    let text = '';
    for await (const chunk of await openai.chat.completions.create({ model, messages, max_completion_tokens: 12, seed: 1, stream: true })) {
      text += chunk.choices[0]?.delta?.content ?? '';
    }
    assert.equal(text, whole.choices[0].message.content);
  },
  async tools() {
    const parameters = { type: 'object', properties: { x: { enum: [1, 2] } }, required: ['x'], additionalProperties: false };
    const tools = [{ type: 'function', function: { name: 'pick', parameters } }];
    const runner = openai.chat.completions.stream({ model, messages, tools, tool_choice: 'required', parallel_tool_calls: false, max_tokens: 100 });
    const call = (await runner.finalMessage()).tool_calls[0];
    assert.equal(call.function.name, 'pick');
    assert.ok([1, 2].includes(JSON.parse(call.function.arguments).x));
  },
  async responses() {
    const kinds = [];
    for await (const event of await openai.responses.create({ model, input: 'Hello', max_output_tokens: 6, stream: true })) kinds.push(event.type);
    assert.equal(kinds[0], 'response.created');
    assert.ok(['response.completed', 'response.incomplete'].includes(kinds.at(-1)));
  },
  async cancellation() {
    const stream = await openai.chat.completions.create({ model, messages, max_tokens: 200, stream: true });
    for await (const _ of stream) break;
    stream.controller.abort();
    await openai.chat.completions.create({ model, messages, max_tokens: 2 });
  },
  async errors() {
    await assert.rejects(openai.chat.completions.create({ model: 'gpt-9', messages }), error => error.status === 404 && error.code === 'model_not_found');
    await assert.rejects(anthropic.messages.create({ model: 'claude-0', max_tokens: 1, messages }), error => error.status === 404);
  },
  async anthropicMessages() {
    const whole = await anthropic.messages.create({ model, max_tokens: 12, messages, temperature: 0 });
    const final = await anthropic.messages.stream({ model, max_tokens: 12, messages, temperature: 0 }).finalMessage();
    assert.equal(final.content[0].text, whole.content[0].text);
    assert.equal(final.stop_reason, whole.stop_reason);
  },
};

process.exit((await run(journeys, 'journeys')) ? 1 : 0);
