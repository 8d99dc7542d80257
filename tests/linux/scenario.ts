/**
 * What is handed over in the tests of this folder: two sessions with memfds of every kind, made and read back by the
 * system calls of `Host` alone.
 *
 * The same functions run on Linux, as the first process there, and on our kernel; so whatever differs between the
 * two handovers is the kernels' doing.
 * @module
 */
import { createHash } from "node:crypto";
import {
  F_ADD_SEALS,
  F_GET_SEALS,
  F_SEAL_FUTURE_WRITE,
  F_SEAL_GROW,
  F_SEAL_SEAL,
  F_SEAL_SHRINK,
  F_SEAL_WRITE,
  MFD_ALLOW_SEALING,
  O_RDWR,
  SEEK_CUR,
  SEEK_END,
  SEEK_SET,
} from "../../src/abi/uapi/fs.ts";
import { Prng } from "../../src/base/prng.ts";
import { KIB, MIB } from "../../src/base/units.ts";
import type { Host } from "../../src/host/host.ts";
import {
  createSession,
  finish,
  preserveFd,
  retrieveFd,
  retrieveSession,
} from "../../src/host/liveupdate.ts";

/** The calls that the scenario makes. */
export type ScenarioHost = Pick<
  Host,
  "open" | "close" | "pread" | "pwrite" | "lseek" | "ftruncate" | "fcntl" | "ioctl" | "memfdCreate"
>;

/** One memfd. */
export interface FilePlan {
  readonly token: bigint;
  readonly sizeBytes: number;
  /** Where bytes are written; everything else is a hole. */
  readonly writes: readonly { readonly offset: number; readonly lengthBytes: number }[];
  /** File position when it is preserved. */
  readonly position: number;
  readonly seals: number;
  /** Whether Linux is asked to back it with huge pages. */
  readonly hugePages?: boolean;
}

export interface SessionPlan {
  readonly name: string;
  readonly files: readonly FilePlan[];
}

const SPARSE_BYTES = 6 * MIB + 0x123;

/** What the tests hand over. */
export const SESSIONS: readonly SessionPlan[] = [
  {
    name: "vm0",
    files: [
      {
        token: 1n,
        sizeBytes: 4 * KIB,
        writes: [{ offset: 0, lengthBytes: 4 * KIB }],
        position: 0,
        seals: 0,
      },
      {
        // Sparse, not a multiple of a page, at an odd position; the token is above 2^63.
        token: 0xfedc_ba98_7654_3210n,
        sizeBytes: SPARSE_BYTES,
        writes: [
          { offset: 0, lengthBytes: 5000 },
          { offset: 2 * MIB - 100, lengthBytes: 200 },
          { offset: 3 * MIB + 12 * KIB, lengthBytes: 8 * KIB },
          { offset: SPARSE_BYTES - 77, lengthBytes: 77 },
        ],
        position: 12_345,
        seals: 0,
      },
    ],
  },
  {
    name: "vm1-größe",
    files: [
      {
        token: 0n,
        sizeBytes: 40_000,
        writes: [{ offset: 1, lengthBytes: 39_998 }],
        position: 39_999,
        seals: F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE,
      },
      {
        // In huge pages; the position is behind the end and above 2^32.
        token: 0xffff_ffff_ffff_ffffn,
        sizeBytes: 4 * MIB,
        writes: [{ offset: 0, lengthBytes: 4 * MIB }],
        position: 2 ** 32 + 1,
        seals: F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE,
        hugePages: true,
      },
      { token: 7n, sizeBytes: 0, writes: [], position: 3, seals: 0 },
    ],
  },
];

/** What a file of the plan holds, byte for byte. */
export function expectedContent(plan: FilePlan): Uint8Array {
  const bytes = new Uint8Array(plan.sizeBytes);
  for (const { offset, lengthBytes } of plan.writes)
    bytes.set(written(plan, offset, lengthBytes), offset);
  return bytes;
}

function written(plan: FilePlan, offset: number, lengthBytes: number): Uint8Array {
  const prng = new Prng(Number(plan.token & 0xffff_ffffn) + offset);
  const words = new Uint32Array(Math.ceil(lengthBytes / 4));
  for (let i = 0; i < words.length; i++) words[i] = prng.next();
  return new Uint8Array(words.buffer, 0, lengthBytes);
}

/** A session that was made, with its descriptors. */
export interface MadeSession {
  readonly plan: SessionPlan;
  readonly fd: number;
  readonly files: readonly { readonly plan: FilePlan; readonly fd: number }[];
}

/**
 * Makes and preserves everything.
 *
 * @param beforeFile - called before a memfd is made
 * @returns the sessions; their descriptors must stay open until the jump
 */
export function preserveAll(
  host: ScenarioHost,
  beforeFile: (plan: FilePlan) => void = () => undefined,
): MadeSession[] {
  const device = host.open("/dev/liveupdate", O_RDWR);
  const sessions = SESSIONS.map((plan) => {
    const fd = createSession(host, device, plan.name);
    const files = plan.files.map((file) => {
      beforeFile(file);
      const memfd = makeMemfd(host, file);
      preserveFd(host, fd, memfd, file.token);
      return { plan: file, fd: memfd };
    });
    return { plan, fd, files };
  });
  host.close(device);
  return sessions;
}

function makeMemfd(host: ScenarioHost, plan: FilePlan): number {
  const fd = host.memfdCreate(`file${plan.token}`, MFD_ALLOW_SEALING);
  host.ftruncate(fd, plan.sizeBytes);
  for (const { offset, lengthBytes } of plan.writes) {
    const bytes = written(plan, offset, lengthBytes);
    for (let done = 0; done < lengthBytes; )
      done += host.pwrite(fd, bytes.subarray(done), offset + done);
  }
  host.lseek(fd, plan.position, SEEK_SET);
  if (plan.seals !== 0) host.fcntl(fd, F_ADD_SEALS, plan.seals);
  return fd;
}

/** A file as userspace sees it. */
export interface ObservedFile {
  readonly session: string;
  /** In hexadecimal. */
  readonly token: string;
  readonly sizeBytes: number;
  readonly position: number;
  readonly seals: number;
  readonly sha256: string;
}

/** What {@link retrieveAll} must find. */
export function expectedFiles(): ObservedFile[] {
  return SESSIONS.flatMap((session) =>
    session.files.map((plan) => ({
      session: session.name,
      token: plan.token.toString(16),
      sizeBytes: plan.sizeBytes,
      position: plan.position,
      seals: plan.seals,
      sha256: sha256(expectedContent(plan)),
    })),
  );
}

/** The sessions after the jump, retrieved and not finished. */
export interface RetrievedSessions {
  readonly files: readonly ObservedFile[];
  readonly fds: readonly number[];
}

/** Takes everything over and reads all of it. */
export function retrieveAll(host: ScenarioHost): RetrievedSessions {
  const device = host.open("/dev/liveupdate", O_RDWR);
  const fds: number[] = [];
  const files = SESSIONS.flatMap((session) => {
    const fd = retrieveSession(host, device, session.name);
    fds.push(fd);
    return session.files.map(({ token }) =>
      observe(host, session.name, token, retrieveFd(host, fd, token)),
    );
  });
  host.close(device);
  return { files, fds };
}

/** Ends the sessions that {@link retrieveAll} took over. */
export function finishAll(host: ScenarioHost, { fds }: RetrievedSessions): void {
  for (const fd of fds) {
    finish(host, fd);
    host.close(fd);
  }
}

function observe(host: ScenarioHost, session: string, token: bigint, fd: number): ObservedFile {
  const position = host.lseek(fd, 0, SEEK_CUR);
  const sizeBytes = host.lseek(fd, 0, SEEK_END);
  const bytes = new Uint8Array(sizeBytes);
  for (let done = 0; done < sizeBytes; ) {
    const got = host.pread(fd, bytes.subarray(done), done);
    if (got === 0) throw new Error(`file ${token} ends at ${done}, not at ${sizeBytes}`);
    done += got;
  }
  const seals = host.fcntl(fd, F_GET_SEALS, 0);
  return { session, token: token.toString(16), sizeBytes, position, seals, sha256: sha256(bytes) };
}

/** Hash of content, as {@link ObservedFile} has it. */
export function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}
