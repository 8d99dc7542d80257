import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import {
  chownSync,
  closeSync,
  existsSync,
  fstatSync,
  openSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { userInfo } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { skipUnless, skipUnlessRoot } from "../../tests/support/skip.ts";
import { KernelError } from "../base/errno.ts";
import { type Channel, type EndpointEvent, LINE_BYTES_MAX, LINE_FDS_MAX } from "../host/channel.ts";
import { type Ffi, SOCK_STREAM } from "./ffi.ts";
import { OUTGOING_BYTES_MAX } from "./line-socket.ts";
import { SocketMessages } from "./socket-messages.ts";
import { eventsOf, linuxTests } from "./test-rig.ts";
import {
  CHANNELS_MAX,
  CHANNELS_OF_USERS_MAX,
  LINES_PER_POLL,
  UnixEndpoint,
} from "./unix-socket.ts";

const linux = process.platform === "linux" ? null : `needs Linux, not ${process.platform}`;
const linuxTest = linuxTests(skipUnless("Unix sockets", linux));
const rootTest = linuxTests(skipUnlessRoot("Unix sockets of other users"));

/** A listening endpoint, and one who is connected and speaks no protocol. */
class Rig {
  readonly ffi: Ffi;
  readonly path: string;
  readonly server: UnixEndpoint;
  readonly #messages: SocketMessages;

  constructor(ffi: Ffi, folder: string) {
    this.ffi = ffi;
    this.path = join(folder, "agent.sock");
    this.server = UnixEndpoint.listen(ffi, { path: this.path, mode: 0o660, gid: null });
    this.#messages = new SocketMessages(ffi);
  }

  /** @returns the client's descriptor and the server's channel */
  raw(): { readonly fd: number; readonly channel: Channel } {
    const fd = this.ffi.socket(SOCK_STREAM);
    this.ffi.connect(fd, this.path);
    const [event] = eventsOf(this.server, 1);
    assert.equal(event.kind, "open");
    return { fd, channel: event.channel };
  }

  send(fd: number, bytes: string | Uint8Array, fds: readonly number[] = []): number {
    return this.#messages.send(fd, typeof bytes === "string" ? Buffer.from(bytes) : bytes, fds);
  }

  /** The text that has come to a client. */
  receive(fd: number): { readonly text: string; readonly fds: readonly number[] } {
    const target = new Uint8Array(1 << 20);
    const { lengthBytes, fds } = this.#messages.receive(fd, target);
    return { text: Buffer.from(target.subarray(0, lengthBytes)).toString(), fds };
  }
}

function lineOf(event: EndpointEvent): string {
  assert.equal(event.kind, "line");
  return event.kind === "line" ? event.line : "";
}

function fdsOf(event: EndpointEvent): readonly number[] {
  return event.kind === "line" ? event.fds : [];
}

function reasonOf(event: EndpointEvent): string | null {
  assert.equal(event.kind, "closed");
  return event.kind === "closed" ? event.reason : "not closed";
}

/** Makes a memfd with one byte in it. */
function memfd(ffi: Ffi, byte: number): number {
  const fd = ffi.memfdCreate("x", 1);
  ffi.write(fd, new Uint8Array([byte]));
  return fd;
}

function byteOf(ffi: Ffi, fd: number): number {
  const byte = new Uint8Array(1);
  ffi.pread(fd, byte, 0);
  return byte[0];
}

linuxTest("lines and descriptors go both ways", ({ ffi, folder }) => {
  const { server, path } = new Rig(ffi, folder);
  const client = UnixEndpoint.connect(ffi, path);
  const [opened] = eventsOf(client, 1);
  const [accepted] = eventsOf(server, 1);
  assert.deepEqual([opened.kind, accepted.kind], ["open", "open"]);
  const own = { pid: process.pid, uid: process.getuid?.(), gid: process.getgid?.() };
  for (const { channel } of [opened, accepted]) {
    const { groups, ...peer } = channel.peer ?? { groups: [] };
    assert.deepEqual(peer, own);
    // Node adds the primary group.
    assert.deepEqual(new Set([...groups, own.gid]), new Set(process.getgroups?.()));
  }

  const sent = [memfd(ffi, 1), memfd(ffi, 2), memfd(ffi, 3)];
  assert.ok(opened.channel.send('{"call":"a"}'));
  assert.ok(opened.channel.send('{"call":"ü","fds":2}', sent.slice(0, 2)));
  assert.ok(opened.channel.send('{"fds":1}', sent.slice(2)));
  assert.ok(opened.channel.send(""));
  for (const fd of sent) ffi.close(fd);
  const lines = eventsOf(server, 4);
  assert.deepEqual(lines.map(lineOf), ['{"call":"a"}', '{"call":"ü","fds":2}', '{"fds":1}', ""]);
  assert.deepEqual(
    lines.map((event) => fdsOf(event).map((fd) => byteOf(ffi, fd))),
    [[], [1, 2], [3], []],
  );
  // A child would keep a session open.
  for (const fd of lines.flatMap(fdsOf)) {
    assert.equal(ffi.fcntl(fd, 1, 0), 1, "FD_CLOEXEC");
    ffi.close(fd);
  }

  const back = memfd(ffi, 9);
  assert.ok(accepted.channel.send('{"fds":1}', [back]));
  ffi.close(back);
  const [answer] = eventsOf(client, 1);
  assert.equal(byteOf(ffi, fdsOf(answer)[0]), 9);
  ffi.close(fdsOf(answer)[0]);

  client.close();
  assert.equal(reasonOf(eventsOf(server, 1)[0]), null);
  assert.equal(accepted.channel.send("late"), false);
  server.close();
});

linuxTest("a line is whole whatever pieces it comes in", ({ ffi, folder }) => {
  const rig = new Rig(ffi, folder);
  const { fd } = rig.raw();
  const text = Buffer.from('{"a":"é"}\n{"b":2}\nhalf');
  const lines: string[] = [];
  for (const byte of text) {
    rig.send(fd, new Uint8Array([byte]));
    for (const event of rig.server.poll(1e9)) lines.push(lineOf(event));
  }
  assert.deepEqual(lines, ['{"a":"é"}', '{"b":2}']);
  // Half a line and then nothing more is no line.
  ffi.close(fd);
  assert.equal(reasonOf(eventsOf(rig.server, 1)[0]), null);
  rig.server.close();
});

linuxTest("what came before the end is delivered, and then the end", ({ ffi, folder }) => {
  const rig = new Rig(ffi, folder);
  const { fd } = rig.raw();
  const count = 3 * LINES_PER_POLL + 1;
  rig.send(fd, Array.from({ length: count }, (_, i) => `${i}\n`).join(""));
  ffi.close(fd);
  const events: EndpointEvent[] = [];
  let polls = 0;
  while (events.at(-1)?.kind !== "closed") {
    const got = rig.server.poll(1e9);
    assert.ok(got.length <= LINES_PER_POLL + 1, `${got.length} events in one poll`);
    events.push(...got);
    assert.ok(++polls < 100);
  }
  assert.deepEqual(
    events.slice(0, -1).map(lineOf),
    Array.from({ length: count }, (_, i) => `${i}`),
  );
  rig.server.close();
});

linuxTest("one that floods neither starves others nor is buffered", ({ ffi, folder }) => {
  const rig = new Rig(ffi, folder);
  const flood = rig.raw();
  const quiet = rig.raw();
  const bytes = new Uint8Array(32 * 1024).fill(0x0a);
  let taken = 0;
  const fill = () => {
    try {
      for (;;) taken += rig.send(flood.fd, bytes);
    } catch (error) {
      assert.match(String(error), /EAGAIN/);
    }
  };
  fill();
  rig.send(quiet.fd, "hello\n");
  const events = rig.server.poll(0);
  assert.equal(events.filter((event) => event.channel === flood.channel).length, LINES_PER_POLL);
  assert.deepEqual(events.filter((event) => event.channel === quiet.channel).map(lineOf), [
    "hello",
  ]);
  // The socket stays full: what is not delivered is not taken either.
  for (let i = 0; i < 20; i++) rig.server.poll(0);
  const before = taken;
  fill();
  assert.ok(taken - before <= 3 * LINE_BYTES_MAX, `${taken - before} bytes more`);
  for (const { fd } of [flood, quiet]) ffi.close(fd);
  rig.server.close();
});

linuxTest("a line that breaks a limit ends its channel, and no other", ({ ffi, folder }) => {
  const rig = new Rig(ffi, folder);
  const other = rig.raw();
  const fds = Array.from({ length: LINE_FDS_MAX + 1 }, (_, i) => memfd(ffi, i));
  const long = "x".repeat(LINE_BYTES_MAX);
  const cases: readonly (readonly [(fd: number) => void, RegExp, number])[] = [
    [(fd) => rig.send(fd, `${long}y`), /longer than 65536/, 0],
    [(fd) => rig.send(fd, new Uint8Array([0xc3, 0x28, 0x0a])), /UTF-8/, 0],
    [(fd) => rig.send(fd, 'ok\n{"fds":1}\nnever\n'), /declares 1 .* and 0 have come/, 1],
    [(fd) => rig.send(fd, '{"fds":3}\n', fds.slice(0, 2)), /declares 3 .* and 2 have come/, 0],
    [(fd) => rig.send(fd, '{"fds":17}\n', fds.slice(0, 2)), /not in 0 .. 16/, 0],
    [(fd) => rig.send(fd, '{"fds":-1}\n'), /not in 0 .. 16/, 0],
    [(fd) => rig.send(fd, '{"fds":"1"}\n', fds.slice(0, 1)), /not in 0 .. 16/, 0],
    [(fd) => rig.send(fd, '{"fds":1}\n', fds.slice(0, 2)), /1 descriptors came with/, 1],
    [(fd) => rig.send(fd, '{"a":1}\n', fds.slice(0, 1)), /1 descriptors came with/, 1],
    [(fd) => rig.send(fd, '{"fds" 1}\n', fds.slice(0, 1)), /1 descriptors came with/, 1],
    [(fd) => rig.send(fd, "x", fds), /more than 16 descriptors/, 0],
    [(fd) => rig.send(fd, "x", Array(60).fill(fds[0])), /more than 16 descriptors/, 0],
    [
      (fd) => {
        rig.send(fd, "x", fds.slice(0, 9));
        rig.send(fd, "x", fds.slice(0, 9));
      },
      /more than 16 descriptors/,
      0,
    ],
  ];
  for (const [attack, reason, linesBefore] of cases) {
    const { fd, channel } = rig.raw();
    attack(fd);
    const events = eventsOf(rig.server, linesBefore + 1);
    for (const event of events) for (const received of fdsOf(event)) ffi.close(received);
    assert.match(String(reasonOf(events[linesBefore])), reason);
    assert.equal(events[linesBefore].channel, channel);
    assert.equal(channel.send("late"), false);
    ffi.close(fd);
  }
  // The longest line, and the most descriptors, are fine.
  rig.send(other.fd, `${long}\n`);
  assert.equal(lineOf(eventsOf(rig.server, 1)[0]).length, LINE_BYTES_MAX);
  rig.send(other.fd, `{"fds":${LINE_FDS_MAX}}\n`, fds.slice(0, LINE_FDS_MAX));
  const [most] = eventsOf(rig.server, 1);
  assert.deepEqual(
    fdsOf(most).map((fd) => byteOf(ffi, fd)),
    Array.from({ length: LINE_FDS_MAX }, (_, i) => i),
  );
  for (const fd of [...fds, ...fdsOf(most), other.fd]) ffi.close(fd);
  rig.server.close();
});

linuxTest(
  "descriptors that the kernel drops for want of room end the channel",
  ({ ffi, folder }) => {
    const room: Ffi = {
      ...ffi,
      // Room for four in struct msghdr.
      recvmsg(socket, message) {
        new DataView(message.buffer).setBigUint64(40, 32n, true);
        return ffi.recvmsg(socket, message);
      },
    };
    const rig = new Rig(room, folder);
    const { fd } = rig.raw();
    const file = memfd(ffi, 0);
    rig.send(fd, '{"fds":10}\n', Array(10).fill(file));
    assert.match(String(reasonOf(eventsOf(rig.server, 1)[0])), /could be taken/);
    for (const open of [file, fd]) ffi.close(open);
    rig.server.close();
  },
);

linuxTest(
  "one that does not read is refused more, and then gets all that was taken",
  ({ ffi, folder }) => {
    const rig = new Rig(ffi, folder);
    const { fd, channel } = rig.raw();
    const file = memfd(ffi, 5);
    const line = `{"fds":1,"x":"${"y".repeat(20_000)}"}`;
    let taken = 0;
    while (channel.send(line, [file])) {
      taken++;
      assert.ok(taken * line.length < 4 * OUTGOING_BYTES_MAX, "it takes without end");
    }
    ffi.close(file);
    assert.ok(taken * line.length > OUTGOING_BYTES_MAX / 2, `it took ${taken} lines`);
    let text = "";
    for (let i = 0; i < 10_000 && text.length < taken * (line.length + 1); i++) {
      const got = rig.receive(fd);
      text += got.text;
      for (const received of got.fds) {
        assert.equal(byteOf(ffi, received), 5);
        ffi.close(received);
      }
      rig.server.poll(0);
    }
    assert.equal(text, `${line}\n`.repeat(taken));
    assert.throws(() => rig.receive(fd), { code: "EAGAIN" });
    ffi.close(fd);
    rig.server.close();
  },
);

linuxTest("one that is gone is told by send and by poll, without SIGPIPE", ({ ffi, folder }) => {
  const rig = new Rig(ffi, folder);
  const { fd, channel } = rig.raw();
  ffi.close(fd);
  assert.equal(channel.send("hello"), false);
  assert.equal(reasonOf(eventsOf(rig.server, 1)[0]), null);
  // With something unread, its end is a reset.
  const reset = rig.raw();
  reset.channel.send("unread");
  ffi.close(reset.fd);
  assert.equal(reasonOf(eventsOf(rig.server, 1)[0]), null);
  rig.server.close();
});

linuxTest("a channel that its owner closes has no more events", ({ ffi, folder }) => {
  const rig = new Rig(ffi, folder);
  const { fd, channel } = rig.raw();
  const file = memfd(ffi, 0);
  rig.send(fd, 'a\nb\n{"fds":1}\n{"fds":1}\n', [file, file].slice(0, 2));
  ffi.close(file);
  const events = rig.server.poll(1e9);
  assert.equal(events.length, 4);
  for (const received of events.flatMap(fdsOf)) ffi.close(received);
  rig.send(fd, "c\n");
  channel.close();
  channel.close();
  assert.deepEqual(rig.server.poll(0), []);
  assert.throws(() => rig.send(fd, "x"), { code: "EPIPE" });
  ffi.close(fd);
  rig.server.close();
});

linuxTest(
  "close() closes what came and was not handed out, and what waits to go",
  ({ ffi, folder }) => {
    const rig = new Rig(ffi, folder);
    const { fd, channel } = rig.raw();
    const file = memfd(ffi, 0);
    rig.send(fd, "half", [file]);
    rig.server.poll(1e9);
    while (channel.send(`{"fds":1,"x":"${"y".repeat(60_000)}"}`, [file]));
    ffi.close(file);
    rig.server.close();
    rig.server.close();
    ffi.close(fd);
    assert.ok(!existsSync(rig.path));
  },
);

linuxTest(
  "a socket that a dead agent left is replaced; a live one is in use",
  ({ ffi, folder }) => {
    const path = join(folder, "agent.sock");
    const options = { path, mode: 0o600, gid: null };
    const dead = ffi.socket(SOCK_STREAM);
    ffi.bind(dead, path);
    ffi.close(dead);
    const agent = UnixEndpoint.listen(ffi, options);
    assert.equal(statSync(path).mode & 0o777, 0o600);
    assert.throws(() => UnixEndpoint.listen(ffi, options), { code: "EADDRINUSE" });
    UnixEndpoint.connect(ffi, path).close();
    assert.deepEqual(
      eventsOf(agent, 2).map((event) => event.kind),
      ["open", "closed"],
    );
    agent.close();
    assert.throws(() => UnixEndpoint.connect(ffi, path), { code: "ENOENT" });

    // One that somebody else listens at, without the agent's lock.
    const foreign = ffi.socket(SOCK_STREAM);
    ffi.bind(foreign, path);
    ffi.listen(foreign, 1);
    assert.throws(() => UnixEndpoint.listen(ffi, options), { code: "EADDRINUSE" });
    ffi.close(foreign);
    assert.throws(() => UnixEndpoint.connect(ffi, path), { code: "ECONNREFUSED" });
    UnixEndpoint.listen(ffi, options).close();

    writeFileSync(path, "precious");
    assert.throws(() => UnixEndpoint.listen(ffi, options), { code: "EADDRINUSE" });
    assert.ok(existsSync(path));
    assert.throws(() => UnixEndpoint.listen(ffi, { ...options, path: `${folder}/a/b/c` }), {
      code: "ENOENT",
    });
    const made = UnixEndpoint.listen(ffi, { ...options, path: join(folder, "run", "agent.sock") });
    made.close();
  },
);

linuxTest("listen() that fails part-way leaves nothing behind", ({ ffi, folder }) => {
  const path = join(folder, "agent.sock");
  for (const step of ["socket", "bind", "listen"] as const) {
    const failing: Ffi = {
      ...ffi,
      [step]() {
        throw new TypeError("injected");
      },
    };
    assert.throws(() => UnixEndpoint.listen(failing, { path, mode: 0o660, gid: null }), /injected/);
    assert.ok(!existsSync(path), step);
  }
  UnixEndpoint.listen(ffi, { path, mode: 0o660, gid: null }).close();
});

linuxTest(
  "a listening socket of the service manager is adopted; nothing else is",
  ({ ffi, folder }) => {
    const path = join(folder, "systemd.sock");
    const listener = ffi.socket(SOCK_STREAM);
    ffi.bind(listener, path);
    assert.throws(() => UnixEndpoint.adopt(ffi, listener), { code: "EINVAL" });
    ffi.listen(listener, 8);
    const agent = UnixEndpoint.adopt(ffi, listener);
    const client = UnixEndpoint.connect(ffi, path);
    assert.equal(eventsOf(agent, 1)[0].kind, "open");
    client.close();
    agent.close();
    assert.throws(() => fstatSync(listener), { code: "EBADF" });
    assert.ok(existsSync(path), "the path is the service manager's");
    const file = openSync("/dev/null", "r");
    assert.throws(() => UnixEndpoint.adopt(ffi, file), { code: "ENOTSOCK" });
    closeSync(file);
    assert.throws(() => UnixEndpoint.adopt(ffi, file), { code: "EBADF" });
  },
);

linuxTest(
  "waitReadable() ends with a client, with wake() and with close()",
  async ({ ffi, folder }) => {
    const { server, path } = new Rig(ffi, folder);
    const waited = async (action: () => void): Promise<void> => {
      let isDone = false;
      const wait = server.waitReadable().then(() => {
        isDone = true;
      });
      // Node's own loop goes on meanwhile.
      await new Promise((resolve) => setTimeout(resolve, 30));
      assert.equal(isDone, false, "it waits");
      action();
      await wait;
    };
    let client: UnixEndpoint | null = null;
    await waited(() => {
      client = UnixEndpoint.connect(ffi, path);
    });
    const [{ channel }] = eventsOf(server, 1);
    assert.ok(client !== null);
    await waited(() => {
      for (const { channel } of (client as unknown as UnixEndpoint).poll(0)) channel.send("x");
    });
    assert.equal(lineOf(eventsOf(server, 1)[0]), "x");
    server.wake();
    await waited(() => server.wake());
    assert.deepEqual(server.poll(0), []);
    channel.close();
    await waited(() => server.close());
    (client as unknown as UnixEndpoint).close();
  },
);

linuxTest("waitReadable() does not wait while lines are left", async ({ ffi, folder }) => {
  const rig = new Rig(ffi, folder);
  const { fd } = rig.raw();
  rig.send(fd, "x\n".repeat(LINES_PER_POLL + 1));
  assert.equal(rig.server.poll(1e9).length, LINES_PER_POLL);
  await rig.server.waitReadable();
  assert.equal(rig.server.poll(1e9).length, 1);
  ffi.close(fd);
  await rig.server.waitReadable();
  assert.equal(reasonOf(eventsOf(rig.server, 1)[0]), null);
  rig.server.close();
});

linuxTest(
  "a process without room for descriptors serves who is there, and tries again",
  ({ ffi, folder }) => {
    let accepts = 0;
    const full: Ffi = {
      ...ffi,
      accept(fd) {
        if (accepts++ < 3) throw new KernelError("EMFILE", "accept4", "no descriptor is free");
        return ffi.accept(fd);
      },
    };
    accepts = 3;
    const rig = new Rig(full, folder);
    const { fd } = rig.raw();
    accepts = 0;
    const client = UnixEndpoint.connect(ffi, rig.path);
    const start = performance.now();
    const events: EndpointEvent[] = [];
    for (let polls = 0; events.length < 2; polls++) {
      assert.ok(polls < 20, "it does not spin");
      if (polls === 1) rig.send(fd, "x\n");
      events.push(...rig.server.poll(1e9));
    }
    assert.deepEqual(
      events.map((event) => event.kind),
      ["line", "open"],
    );
    assert.ok(performance.now() - start >= 299, "three pauses of 100 ms");
    client.close();
    ffi.close(fd);
    rig.server.close();
  },
);

linuxTest("a connection whose peer cannot be told is not kept", ({ ffi, folder }) => {
  const blind: Ffi = {
    ...ffi,
    getsockopt() {
      throw new KernelError("ENOMEM", "getsockopt", "injected");
    },
  };
  const rig = new Rig(blind, folder);
  const client = ffi.socket(SOCK_STREAM);
  ffi.connect(client, rig.path);
  assert.throws(() => rig.server.poll(1e9), { code: "ENOMEM" });
  assert.equal(ffi.read(client, new Uint8Array(1)), 0);
  ffi.close(client);
  rig.server.close();
});

linuxTest("there are at most so many channels", ({ ffi, folder }) => {
  const rig = new Rig(ffi, folder);
  const fds: number[] = [];
  let open = 0;
  let closed = 0;
  for (let i = 0; i < CHANNELS_MAX + 8; i++) {
    const fd = ffi.socket(SOCK_STREAM);
    ffi.connect(fd, rig.path);
    fds.push(fd);
    for (const event of rig.server.poll(1e9)) {
      if (event.kind === "open") open++;
      else closed++;
    }
  }
  const limit = userInfo().uid === 0 ? CHANNELS_MAX : CHANNELS_OF_USERS_MAX;
  assert.deepEqual([open, closed], [limit, 0]);
  // One that is over it sees its connection end, and room is there again when one leaves.
  assert.equal(ffi.read(fds[fds.length - 1], new Uint8Array(1)), 0);
  for (const fd of fds) ffi.close(fd);
  while (closed < limit)
    closed += rig.server.poll(1e9).filter((event) => event.kind === "closed").length;
  ffi.close(rig.raw().fd);
  rig.server.close();
});

rootTest(
  "users other than root are known by their ids, and leave room for root",
  async ({ ffi, folder }) => {
    const path = join(folder, "agent.sock");
    const server = UnixEndpoint.listen(ffi, { path, mode: 0o666, gid: 4242 });
    assert.equal(statSync(path).gid, 4242);
    assert.equal(statSync(path).mode & 0o777, 0o666);
    chownSync(folder, 61234, 61235);
    const tooMany = 8;
    const program = `
    for (let i = 0; i < ${CHANNELS_OF_USERS_MAX + tooMany}; i++)
      require("node:net").connect(${JSON.stringify(path)}).on("close", () => console.log("closed"));
    process.stdin.on("end", () => process.exit(0)).resume();`;
    const child = spawn(process.execPath, ["-e", program], { uid: 61234, gid: 61235 });
    const exited = once(child, "exit");
    let told = "";
    child.stdout.on("data", (text) => {
      told += text;
    });
    const channels: Channel[] = [];
    const end = performance.now() + 10_000;
    while (told.length < tooMany * "closed\n".length) {
      assert.ok(performance.now() < end, `${channels.length} channels, ${told}`);
      for (const event of server.poll(0)) {
        assert.equal(event.kind, "open");
        channels.push(event.channel);
      }
      await sleep(5);
    }
    assert.equal(channels.length, CHANNELS_OF_USERS_MAX);
    for (const { peer } of channels)
      assert.deepEqual(peer, { pid: child.pid, uid: 61234, gid: 61235, groups: [] });
    server.poll(100e6);
    const client = UnixEndpoint.connect(ffi, path);
    const [opened] = eventsOf(server, 1);
    assert.equal(opened.channel.peer?.uid, 0);
    client.close();
    child.stdin.end();
    await exited;
    server.close();
  },
);
