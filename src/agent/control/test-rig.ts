/**
 * A world for tests of the agent's server: processes with descriptors of their own on a {@link FakeHost}, channels between
 * them in memory, time that passes when somebody waits, and kexecs.
 *
 * Why: every process can be killed at every message, every call can fail, and afterwards every descriptor is accounted for.
 * @module
 */

import { encodeUtf8 } from "../../abi/struct.ts";
import {
  LIVEUPDATE_IOCTL_CREATE_SESSION,
  LIVEUPDATE_IOCTL_CREATE_SESSION_ARG,
  LIVEUPDATE_IOCTL_RETRIEVE_SESSION,
  LIVEUPDATE_SESSION_RETRIEVE_FD,
  LIVEUPDATE_SESSION_RETRIEVE_FD_ARG,
} from "../../abi/uapi/liveupdate.ts";
import { ByteWords } from "../../abi/words.ts";
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import {
  type Channel,
  type Endpoint,
  type EndpointEvent,
  LINE_BYTES_MAX,
  type Peer,
} from "../../host/channel.ts";
import type { Host } from "../../host/host.ts";
import { preserveFd, retrieveFd } from "../../host/liveupdate.ts";
import type { Resource } from "../../vmm/managed-vm.ts";
import { FakeHost, Jumped } from "../test-rig.ts";
import { type AgentState, decodeAgentState, type StateStore } from "./agent-state.ts";
import { AgentServer, type AgentServerOptions } from "./server.ts";
import { type VmCallbacks, VmClient, type Work } from "./vm-client.ts";
import type { Custody } from "./vm-registry.ts";

export const IMAGE = "/boot/next";
const RESTORES = ["kho-v4", "luo-v5", "memfd-v2"];
/** Lines that a socket's buffer takes. */
const BUFFER_LINES = 64;
/** Lines of one channel in one poll. */
const LINES_PER_POLL = 4;
/** Turns of the others while somebody waits, before time passes: at most so much. */
const IDLE_TURNS = 2;
const SLICE_NS = 1e9;
export const GROUP = 77;

/** A process: its descriptors are closed when it ends, however it ends. */
export class FakeProcess {
  readonly fds = new Set<number>();
  readonly channels: FakeChannel[] = [];
  hasEnded = false;
  readonly host: Host;
  readonly peer: Peer;
  readonly #fake: FakeHost;

  constructor(world: World, uid: number) {
    const fake = world.fake;
    world.processes.push(this);
    this.#fake = fake;
    this.peer = { pid: world.nextPid++, uid, gid: GROUP, groups: [] };
    const opened = (fd: number) => {
      this.fds.add(fd);
      return fd;
    };
    this.host = new Proxy(fake.host, {
      get: (host, name: keyof Host) => {
        switch (name) {
          case "open":
          case "dup":
          case "memfdCreate":
            return (...args: [never, never]) =>
              opened((host[name] as (...args: never[]) => number)(...args));
          case "close":
            return (fd: number) => this.close(fd);
          case "ioctl":
            return (fd: number, request: number, argument: { bytes: Uint8Array }) => {
              const result = host.ioctl(fd, request, argument);
              const made = madeDescriptor(request, argument.bytes);
              if (made !== null) opened(made);
              return result;
            };
          case "reboot":
            return (command: number) => {
              try {
                return host.reboot(command);
              } catch (error) {
                world.hasEnded = error instanceof Jumped;
                throw error;
              }
            };
          case "clockNs":
            return () => host.clockNs() + world.waitedNs;
          default:
            return host[name];
        }
      },
    });
  }

  /** Takes a copy of another process's descriptor, as SCM_RIGHTS gives it. */
  receive(fd: number): void {
    this.fds.add(fd);
  }

  close(fd: number): void {
    // Of a descriptor that is another's, or closed already, it is a bug in who closes.
    assert(
      this.fds.delete(fd),
      `pid ${this.peer.pid} closes descriptor ${fd}, which it does not have`,
    );
    this.#fake.host.close(fd);
  }

  /** Everything goes that it has. */
  exit(): void {
    this.hasEnded = true;
    for (const channel of this.channels) channel.close();
    for (const fd of [...this.fds]) this.close(fd);
  }
}

function madeDescriptor(request: number, bytes: Uint8Array): number | null {
  const words = new ByteWords(bytes);
  switch (request) {
    case LIVEUPDATE_IOCTL_CREATE_SESSION:
    case LIVEUPDATE_IOCTL_RETRIEVE_SESSION:
      return words.load32(LIVEUPDATE_IOCTL_CREATE_SESSION_ARG.offset.fd);
    case LIVEUPDATE_SESSION_RETRIEVE_FD:
      return words.load32(LIVEUPDATE_SESSION_RETRIEVE_FD_ARG.offset.fd);
    default:
      return null;
  }
}

/** One end of a connection. */
export class FakeChannel implements Channel {
  readonly peer: Peer;
  readonly #owner: FakeProcess;
  readonly #world: World;
  readonly #fake: FakeHost;
  other: FakeChannel | null = null;
  /** What has come and was not polled. Descriptors are in flight: nobody's, and not closed. */
  readonly inbox: { line: string; fds: readonly number[] }[] = [];
  isOpen = true;
  /** The other end is closed: after its lines, that is told. */
  isEnded = false;
  /** Takes nothing, as one whose reader does not read. */
  isFull = false;

  constructor(world: World, owner: FakeProcess, peer: Peer) {
    this.#world = world;
    this.#fake = world.fake;
    this.#owner = owner;
    this.peer = peer;
  }

  send(line: string, fds: readonly number[] = []): boolean {
    const { other } = this;
    if (this.#world.hasEnded) throw new Jumped();
    if (!this.isOpen || other === null || !other.isOpen || this.isFull) return false;
    if (other.inbox.length >= BUFFER_LINES || encodeUtf8(line).length > LINE_BYTES_MAX)
      return false;
    for (const fd of fds)
      assert(this.#owner.fds.has(fd), `pid ${this.#owner.peer.pid} sends its own`);
    other.inbox.push({ line, fds: fds.map((fd) => this.#fake.host.dup(fd)) });
    return true;
  }

  close(): void {
    if (!this.isOpen) return;
    this.isOpen = false;
    for (const { fds } of this.inbox.splice(0)) for (const fd of fds) this.#fake.host.close(fd);
    if (this.other !== null) this.other.isEnded = true;
  }

  /** @param limit - lines at most */
  take(limit: number): EndpointEvent[] {
    const events: EndpointEvent[] = [];
    for (const { line, fds } of this.inbox.splice(0, limit)) {
      for (const fd of fds) this.#owner.receive(fd);
      events.push({ kind: "line", channel: this, line, fds });
    }
    if (this.isEnded && this.inbox.length === 0 && this.isOpen) {
      this.isOpen = false;
      events.push({ kind: "closed", channel: this, reason: null });
    }
    return events;
  }
}

/** Channels of one process. */
export class FakeEndpoint implements Endpoint {
  readonly #world: World;
  readonly #idle: () => void;
  readonly channels: FakeChannel[] = [];
  readonly #fresh: FakeChannel[] = [];

  /** @param idle - what happens while it waits */
  constructor(world: World, idle: () => void) {
    this.#world = world;
    this.#idle = idle;
  }

  add(channel: FakeChannel): void {
    this.#fresh.push(channel);
  }

  poll(timeoutNs: number): readonly EndpointEvent[] {
    for (let turn = 0; ; turn++) {
      const events = this.#take();
      if (events.length > 0 || timeoutNs === 0) return events;
      if (turn < IDLE_TURNS) this.#idle();
      else {
        this.#world.waitedNs += Math.min(timeoutNs, SLICE_NS);
        return [];
      }
    }
  }

  close(): void {
    for (const channel of [...this.channels, ...this.#fresh]) channel.close();
  }

  #take(): EndpointEvent[] {
    const events: EndpointEvent[] = [];
    for (const channel of this.#fresh.splice(0)) {
      this.channels.push(channel);
      events.push({ kind: "open", channel });
    }
    for (const channel of this.channels) events.push(...channel.take(LINES_PER_POLL));
    const open = this.channels.filter(({ isOpen }) => isOpen);
    this.channels.splice(0, Number.POSITIVE_INFINITY, ...open);
    return events;
  }
}

/** State on a medium that can fail, and outlives the agent, but not always the kernel. */
export class MemoryStore implements StateStore {
  text: string | null = null;
  fails: KernelError["code"] | null = null;

  read(): AgentState | null {
    return this.text === null ? null : decodeAgentState(this.text);
  }

  write(state: AgentState): void {
    if (this.fails !== null) throw new KernelError(this.fails, "write", "injected");
    this.text = JSON.stringify(state);
  }
}

/** A service manager, which holds copies of descriptors. */
class FakeCustody implements Custody {
  readonly process: FakeProcess;
  readonly sessions = new Map<string, number>();

  constructor(world: World) {
    this.process = new FakeProcess(world, 0);
  }

  keep(name: string, session: number): void {
    this.release(name);
    this.sessions.set(name, this.process.host.dup(session));
  }

  release(name: string): void {
    const fd = this.sessions.get(name);
    if (fd !== undefined) this.process.close(fd);
    this.sessions.delete(name);
  }
}

export interface WorldOptions {
  readonly timeoutNs?: number;
  readonly hasCustody?: boolean;
}

/** A host: its kernel, the agent, VMMs and operators. */
export class World {
  fake = new FakeHost();
  /** Of this kernel, those that have ended, too. */
  processes: FakeProcess[] = [];
  nextPid = 100;
  waitedNs = 0;
  /** The kernel has ended: nobody on it does anything any more, however its stack unwinds. */
  hasEnded = false;
  boot = 1;
  readonly store = new MemoryStore();
  readonly #options: WorldOptions;
  server: AgentServer | null = null;
  #endpoint: FakeEndpoint | null = null;
  #agentProcess: FakeProcess | null = null;
  #custody: FakeCustody | null = null;
  vms: ToyVmm[] = [];
  operators: Operator[] = [];
  /** Called each time the agent waits. */
  onIdle: () => void = () => this.turnAll();

  constructor(options: WorldOptions = {}) {
    this.#options = options;
    this.fake.images.set(
      IMAGE,
      JSON.stringify({ format: 1, name: "next", release: "next-1", restores: RESTORES }),
    );
    if (options.hasCustody === true) this.#custody = new FakeCustody(this);
  }

  startAgent(changes: Partial<AgentServerOptions> = {}): AgentServer {
    const process = new FakeProcess(this, 0);
    const endpoint = new FakeEndpoint(this, () => this.onIdle());
    const handedIn = [...(this.#custody?.sessions ?? [])].map(([name, fd]) => {
      const session = process.host.dup(fd);
      return { name, session };
    });
    this.#agentProcess = process;
    this.#endpoint = endpoint;
    this.server = AgentServer.start({
      host: process.host,
      endpoint,
      store: this.store,
      bootId: `boot-${this.boot}`,
      group: GROUP,
      custody: this.#custody,
      handedIn,
      hasEnded: (pid) => this.processes.every(({ peer, hasEnded }) => peer.pid !== pid || hasEnded),
      ...(this.#options.timeoutNs === undefined ? {} : { timeoutNs: this.#options.timeoutNs }),
      ...changes,
    });
    return this.server;
  }

  /** SIGKILL. */
  killAgent(): void {
    this.#endpoint?.close();
    this.#agentProcess?.exit();
    this.server = null;
    this.#endpoint = null;
    this.#agentProcess = null;
  }

  /** @throws {KernelError} ECONNREFUSED there is no agent */
  connect(process: FakeProcess): FakeEndpoint {
    const agent = this.#agentProcess;
    if (agent === null || this.#endpoint === null)
      throw new KernelError("ECONNREFUSED", "connect", "no agent listens");
    const mine = new FakeChannel(this, process, agent.peer);
    const its = new FakeChannel(this, agent, process.peer);
    mine.other = its;
    its.other = mine;
    this.#endpoint.add(its);
    const endpoint = new FakeEndpoint(this, () => undefined);
    endpoint.add(mine);
    process.channels.push(mine);
    return endpoint;
  }

  /** A turn of everybody but the agent. */
  turnAll(): void {
    for (const vm of [...this.vms]) vm.turn();
    for (const operator of this.operators) operator.turn();
  }

  /** Turns of everybody until nothing more happens. @returns whether the kernel was replaced */
  settle(turns = 30): boolean {
    try {
      for (let turn = 0; turn < turns; turn++) {
        this.turnAll();
        this.server?.poll(0);
        this.waitedNs += 1e8;
      }
      return false;
    } catch (error) {
      if (!(error instanceof Jumped)) throw error;
      this.jump();
      return true;
    }
  }

  /** The next kernel: no process is left. The state stays, as on a disk. */
  jump(): void {
    this.fake = this.fake.afterJump();
    this.hasEnded = false;
    this.processes = [];
    this.boot++;
    this.server = null;
    this.#endpoint = null;
    this.#agentProcess = null;
    this.vms = [];
    this.operators = [];
    if (this.#custody !== null) this.#custody = new FakeCustody(this);
  }

  /** A VMM's process is started. */
  startVm(name: string, uid = 0): ToyVmm {
    const vm = new ToyVmm(this, name, uid);
    this.vms.push(vm);
    return vm;
  }

  operator(uid = 0): Operator {
    const operator = new Operator(this, uid);
    this.operators.push(operator);
    return operator;
  }

  vm(name: string): ToyVmm {
    const vm = this.vms.find((one) => one.name === name && one.isAlive);
    assert(vm !== undefined, `VM ${name} runs`);
    return vm;
  }
}

/** Unwinds the turn of a process that was killed in it. */
class Killed extends Error {}

/** A VMM of one VM that is a memfd. */
export class ToyVmm implements VmCallbacks {
  readonly name: string;
  readonly process: FakeProcess;
  readonly client: VmClient;
  isAlive = true;
  /** Whether the guest runs. */
  runs = false;
  /** Its guest's memory; null: not there yet. */
  memory: number | null = null;
  hasIommufd = false;
  /** What was asked of it. */
  readonly story: string[] = [];
  /** Called before it does what is asked; may throw, or kill somebody. */
  before: (task: string) => void = () => undefined;
  /** Turns that a piece of its work takes. */
  workTurns = 0;
  /** Whether it does its turns: one that hangs does not. */
  hangs = false;
  /** Whether it says that its guest runs. */
  saysRunning = true;

  constructor(world: World, name: string, uid: number) {
    this.name = name;
    this.process = new FakeProcess(world, uid);
    this.client = new VmClient({
      name,
      host: this.process.host,
      connect: () => world.connect(this.process),
      callbacks: this,
      retryNs: 1e8,
    });
  }

  turn(): void {
    if (!this.isAlive || this.hangs) return;
    try {
      this.client.turn();
    } catch (error) {
      if (!(error instanceof Killed)) throw error;
      return;
    }
    if (this.client.state === "restoring" && this.runs && this.saysRunning)
      this.client.running(this.process.host.clockNs());
  }

  /** SIGKILL. */
  kill(): void {
    if (!this.isAlive) return;
    this.isAlive = false;
    this.process.exit();
  }

  resources(): readonly Resource[] {
    const memory = {
      kind: "memory",
      label: "memfd",
      bytes: 4096,
      compatibles: ["memfd-v2"],
      blocker: null,
      essential: true,
    } as const;
    const iommufd = {
      kind: "iommufd",
      label: "/dev/iommu",
      bytes: 0,
      compatibles: [],
      blocker: null,
      essential: false,
    } as const;
    return this.hasIommufd ? [memory, iommufd] : [memory];
  }

  begin(): void {
    this.#do("begin");
    this.memory = this.process.host.memfdCreate(this.name, 0);
    this.runs = true;
  }

  restore(session: number): Work {
    this.#do("restore");
    return this.#slowly(() => {
      this.memory = retrieveFd(this.process.host, session, 1n);
      this.runs = true;
    });
  }

  preserve(session: number): Work {
    this.#do("preserve");
    return this.#slowly(() => {
      if (this.memory === null) throw new KernelError("EINVAL", "preserve", "it could not begin");
      preserveFd(this.process.host, session, this.memory, 1n);
    });
  }

  unpreserve(): void {
    this.#do("unpreserve");
  }

  pause(): Work {
    this.#do("pause");
    return this.#slowly(() => {
      this.runs = false;
    });
  }

  resume(): void {
    this.#do("resume");
    this.runs = true;
  }

  rebuild(): Work {
    this.#do("rebuild");
    return null;
  }

  swap(): Work {
    this.#do("swap");
    return null;
  }

  finished(): void {
    this.#do("finished");
  }

  #do(task: string): void {
    this.story.push(task);
    this.before(task);
    if (!this.isAlive) throw new Killed();
  }

  #slowly(action: () => void): Work {
    let left = this.workTurns;
    if (left === 0) {
      action();
      return null;
    }
    return () => {
      if (--left > 0) return false;
      action();
      return true;
    };
  }
}

/** Somebody who says lines to the agent, and keeps what it says. */
export class Operator {
  readonly process: FakeProcess;
  readonly channel: FakeChannel;
  readonly #endpoint: FakeEndpoint;
  readonly heard: Record<string, unknown>[] = [];
  isClosed = false;
  #lastId = 0;

  constructor(world: World, uid: number) {
    this.process = new FakeProcess(world, uid);
    this.#endpoint = world.connect(this.process);
    const [event] = this.#endpoint.poll(0);
    assert(event.kind === "open", "a connection opens");
    this.channel = event.channel as FakeChannel;
  }

  turn(): void {
    for (;;) {
      const events = this.#endpoint.poll(0);
      for (const event of events) {
        if (event.kind === "closed") this.isClosed = true;
        if (event.kind !== "line") continue;
        this.heard.push(JSON.parse(event.line) as Record<string, unknown>);
        for (const fd of event.fds) this.process.close(fd);
      }
      if (events.length === 0) return;
    }
  }

  /** @returns the call's id */
  call(call: string, fields: object = {}, fds: readonly number[] = []): number {
    const id = ++this.#lastId;
    const message = { id, call, ...fields, ...(fds.length > 0 ? { fds: fds.length } : {}) };
    this.channel.send(JSON.stringify(message), fds);
    return id;
  }

  close(): void {
    this.process.exit();
  }

  /** Answers to a call: one, if all is well. */
  answers(
    id: number,
  ): { result?: Record<string, unknown>; error?: { code: string; message: string } }[] {
    return this.heard.filter((message) => message.id === id && message.event === undefined);
  }

  events(id: number): Record<string, unknown>[] {
    return this.heard
      .filter((message) => message.id === id && message.event !== undefined)
      .map((message) => message.event as Record<string, unknown>);
  }
}
