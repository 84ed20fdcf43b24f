// One answer of the model: the request, its pieces as they come, its speed, and its end.

import { ServerError, countTokens, streamChat } from "./api.js";
import { pathTo, requestMessages } from "./conversation.js";
import { samplingFields } from "./settings.js";

const SHOW_EVERY = 50; // ms between two drawings of a growing answer

export class Answer {
  // `message` is the answer's own, in `conversation`. `changed()` is called as it grows.
  constructor(conversation, message, changed) {
    this.conversation = conversation;
    this.message = message;
    this.changed = changed;
    this.abort = new AbortController();
    this.timer = 0;
  }

  stop() {
    this.abort.abort();
  }

  // Runs to the end, which `message.state` tells; `message.error` says what went wrong.
  async run() {
    const { message, conversation } = this;
    const path = pathTo(conversation, message.parent);
    this.messages = requestMessages(conversation, path);
    this.changed();
    try {
      const result = await this.#stream();
      const end = result.stoppedBy ?? result.finishReason;
      message.state = ["length", "loop", "content_filter"].includes(end) ? end : "";
      this.#count(result.usage);
    } catch (error) {
      message.state = error.name === "AbortError" ? "stopped" : "failed";
      if (message.state === "failed") message.error = describe(error);
    } finally {
      clearTimeout(this.timer);
      this.timer = 0;
    }
  }

  async #stream() {
    const { conversation } = this;
    const body = { model: this.message.model || undefined, messages: this.messages, ...samplingFields(conversation.settings) };
    for (;;) {
      try {
        return await streamChat(body, this.abort.signal, (text) => this.#grow(text));
      } catch (error) {
        const busy = error instanceof ServerError && error.status === 503 && error.retryAfter > 0;
        if (!busy || this.message.content) throw error;
        await this.#wait(error.retryAfter);
      }
    }
  }

  // The queue is full: waits as long as the server says.
  #wait(seconds) {
    const signal = this.abort.signal;
    return new Promise((resolve, reject) => {
      const stopped = () => reject(new DOMException("stopped", "AbortError"));
      signal.addEventListener("abort", stopped, { once: true });
      setTimeout(() => {
        signal.removeEventListener("abort", stopped);
        resolve();
      }, 1000 * seconds);
    });
  }

  #grow(text) {
    const { message } = this;
    const now = performance.now();
    message.content += text;
    message.state = "running";
    this.first ??= now;
    this.last = now;
    this.pieces = (this.pieces ?? 0) + 1;
    message.stats = { generated: this.pieces, rate: this.#rate(this.pieces) };
    this.timer ||= setTimeout(() => {
      this.timer = 0;
      this.changed();
    }, SHOW_EVERY);
  }

  // Tokens per second after the first.
  #rate(count) {
    return count > 1 && this.last > this.first ? (1000 * (count - 1)) / (this.last - this.first) : 0;
  }

  #count(usage) {
    if (!usage) return;
    const { prompt_tokens: prompt, completion_tokens: generated } = usage;
    this.message.stats = { prompt, generated, rate: this.#rate(generated) };
  }

  // An answer that was stopped has no usage: the prompt is counted apart.
  async countPrompt() {
    const { message } = this;
    if (!message.stats?.generated || message.stats.prompt) return;
    try {
      const prompt = await countTokens(message.model || undefined, this.messages);
      message.stats = { ...message.stats, prompt };
    } catch {
      // The server is gone: the context meter stays empty.
    }
  }
}

function describe(error) {
  return error instanceof TypeError ? "broken off: the server cannot be reached" : `failed: ${error.message}`;
}
