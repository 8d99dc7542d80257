import assert from "node:assert/strict";
import { test } from "node:test";
import { KernelError } from "../base/errno.ts";
import type { EndpointEvent } from "./channel.ts";
import type { Host } from "./host.ts";
import {
  type ChannelMessage,
  decodeChannelMessage,
  encodeChannelMessage,
  SerialEndpoint,
} from "./serial-endpoint.ts";

/** A host whose serial line says what is pushed into `input`, in pieces of at most `pieceBytes`. */
function endpointWith(pieceBytes = 7) {
  let input = Buffer.alloc(0);
  let nowNs = 0;
  const printed: string[] = [];
  const closed: number[] = [];
  const calls: Partial<Host> = {
    open: () => 5,
    close: (fd) => void closed.push(fd),
    read(_fd, target) {
      if (input.length === 0) throw new KernelError("EAGAIN", "read", "nothing");
      const length = Math.min(pieceBytes, input.length, target.length);
      input.copy(target, 0, 0, length);
      input = input.subarray(length);
      return length;
    },
    print: (line) => void printed.push(line),
    clockNs: () => nowNs,
    sleep: (timeoutNs) => {
      nowNs += timeoutNs;
    },
  };
  const endpoint = new SerialEndpoint(calls as Host);
  const say = (text: string) => {
    input = Buffer.concat([input, Buffer.from(`${text}\n`)]);
  };
  return {
    endpoint,
    say,
    tell: (message: ChannelMessage) => say(encodeChannelMessage(message)),
    sent: () => printed.splice(0).map(decodeChannelMessage),
    closed,
    clockNs: () => nowNs,
  };
}

function channelOf(event: EndpointEvent | undefined) {
  assert(event?.kind === "open");
  return event.channel;
}

test("poll() tells of channels that open, say lines and close, however the bytes come", () => {
  const { endpoint, tell, say, sent } = endpointWith();
  tell({ channel: 1, kind: "open" });
  tell({ channel: 1, kind: "line", line: '{"größe": 1}' });
  tell({ channel: 2, kind: "open" });
  say("a line of no channel");
  tell({ channel: 1, kind: "closed" });
  const events = endpoint.poll(0);
  assert.deepEqual(
    events.map(({ kind }) => kind),
    ["open", "line", "open", "closed"],
  );
  const [first, line, second, closed] = events;
  assert(line.kind === "line" && closed.kind === "closed");
  assert.equal(line.line, '{"größe": 1}');
  assert.equal(line.channel, channelOf(first));
  assert.equal(closed.channel, channelOf(first));
  assert.equal(channelOf(first).send("too late"), false);
  assert.equal(channelOf(second).send("hello"), true);
  assert.deepEqual(sent(), [{ channel: 2, kind: "line", line: "hello" }]);
});

test("poll() waits as long as it was told when nothing comes", () => {
  const { endpoint, clockNs } = endpointWith();
  assert.deepEqual(endpoint.poll(3_500_000), []);
  assert.equal(clockNs(), 3_500_000);
});

test("send() refuses descriptors and lines that are too long, and close() is told once", () => {
  const { endpoint, tell, sent } = endpointWith();
  tell({ channel: 9, kind: "open" });
  const channel = channelOf(endpoint.poll(0)[0]);
  assert.equal(channel.send("x", [3]), false);
  assert.equal(channel.send("ä".repeat(32 * 1024 + 1)), false);
  assert.equal(channel.send("ä".repeat(32 * 1024)), true);
  channel.close();
  channel.close();
  assert.equal(channel.send("x"), false);
  assert.deepEqual(
    sent().map((message) => message?.kind),
    ["line", "closed"],
  );
  tell({ channel: 9, kind: "line", line: "crossed the close" });
  tell({ channel: 9, kind: "closed" });
  assert.deepEqual(endpoint.poll(0), []);
});

test("a line for a channel that this kernel has not seen opened was for the kernel before", () => {
  const { endpoint, tell } = endpointWith();
  tell({ channel: 3, kind: "line", line: "update" });
  tell({ channel: 3, kind: "closed" });
  assert.deepEqual(endpoint.poll(0), []);
});

test("close() ends all channels and gives the descriptor back", () => {
  const { endpoint, tell, sent, closed } = endpointWith();
  tell({ channel: 1, kind: "open" });
  tell({ channel: 2, kind: "open" });
  endpoint.poll(0);
  endpoint.close();
  assert.deepEqual(sent(), [
    { channel: 1, kind: "closed" },
    { channel: 2, kind: "closed" },
  ]);
  assert.deepEqual(closed, [5]);
});

test("decodeChannelMessage() gives null for what is no message", () => {
  for (const text of [
    "",
    "kernel: booting",
    "@channel ",
    "@channel {",
    "@channel null",
    '@channel {"channel":1}',
    '@channel {"channel":1.5,"kind":"open"}',
    '@channel {"channel":1,"kind":"line"}',
    '@channel {"channel":1,"kind":"line","line":7}',
    '@channel {"channel":1,"kind":"other"}',
  ])
    assert.equal(decodeChannelMessage(text), null, text);
});
