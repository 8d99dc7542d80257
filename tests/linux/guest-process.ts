/**
 * A program that runs in the guest, as its first process tells of it.
 * @module
 */

/** How a program ended: by itself, by a signal, or with its kernel. */
export interface ProcessEnd {
  readonly code: number | null;
  readonly signal: string | null;
  /** Its kernel was replaced or has ended. */
  readonly withKernel: boolean;
}

/** What a process needs of its machine. */
export interface ProcessMachine {
  /** Waits for something that an event of the guest may bring about. */
  until<T>(what: string, find: () => T | null, timeoutMs?: number): Promise<T>;
  order(name: "signal", pid: number, signal: string): Promise<void>;
  send(name: "write", pid: number, text: string): void;
  fail(message: string): never;
}

const TAIL_LINES = 30;

export class GuestProcess {
  readonly pid: number;
  readonly name: string;
  /** Everything that it has printed so far. */
  stdout = "";
  stderr = "";
  /** Null while it runs. */
  end: ProcessEnd | null = null;
  readonly #machine: ProcessMachine;
  /** Of both streams: how much of it {@link line} has passed. */
  readonly #passed = { stdout: 0, stderr: 0 };

  constructor(machine: ProcessMachine, pid: number, name: string) {
    this.#machine = machine;
    this.pid = pid;
    this.name = name;
  }

  /**
   * Waits for a line, which may have come already, and passes it: the next call looks behind it.
   *
   * @throws {Error} when the program ends without it, or it does not come in time; with what has come
   */
  line(
    pattern: RegExp,
    stream: "stdout" | "stderr" = "stdout",
    timeoutMs?: number,
  ): Promise<RegExpExecArray> {
    const find = () => {
      for (;;) {
        const end = this[stream].indexOf("\n", this.#passed[stream]);
        if (end < 0) break;
        const line = this[stream].slice(this.#passed[stream], end);
        this.#passed[stream] = end + 1;
        const match = pattern.exec(line);
        if (match !== null) return match;
      }
      if (this.end !== null)
        this.#machine.fail(`${this.name} ended without printing ${pattern}: ${this.describe()}`);
      return null;
    };
    return this.#machine.until(`line ${pattern} of ${this.name}`, find, timeoutMs);
  }

  /** Waits until a line is anywhere in what it has printed, and passes nothing: what comes in no certain order. */
  async seen(pattern: RegExp, timeoutMs?: number): Promise<void> {
    const find = () => this.stdout.split("\n").some((line) => pattern.test(line)) || null;
    await this.#machine.until(`line ${pattern} of ${this.name}`, find, timeoutMs);
  }

  /** Waits until it has ended. */
  ended(timeoutMs?: number): Promise<ProcessEnd> {
    return this.#machine.until(`end of ${this.name}`, () => this.end, timeoutMs);
  }

  /** Sends a signal. */
  async signal(signal: NodeJS.Signals): Promise<void> {
    await this.#machine.order("signal", this.pid, signal);
  }

  /** Ends it for certain, and waits until it has. */
  async kill(): Promise<ProcessEnd> {
    await this.signal("SIGKILL");
    return this.ended();
  }

  /** Writes to its standard input. What comes of it shows in what it does. */
  write(text: string): void {
    this.#machine.send("write", this.pid, text);
  }

  /** For messages: how it ended, and the end of what it printed. */
  describe(): string {
    const tail = (text: string) => text.split("\n").slice(-TAIL_LINES).join("\n");
    return `${JSON.stringify(this.end)}\nstdout: ${tail(this.stdout)}\nstderr: ${tail(this.stderr)}`;
  }
}
