/**
 * Bytes and descriptors over a connected Unix socket.
 *
 * Source: sendmsg(2), recvmsg(2), cmsg(3), unix(7); Linux 7.3 include/linux/socket.h
 * Layout (64 bits): struct msghdr {name u64, namelen u32, -, iov u64, iovlen u64, control u64, controllen u64, flags u32, -};
 *   struct iovec {base u64, length u64}; struct cmsghdr {length u64, level u32, type u32}, then data, each aligned to 8
 * @module
 */
import { alignUp } from "../base/units.ts";
import { type Ffi, MSG_CTRUNC, SOL_SOCKET } from "./ffi.ts";

const SCM_RIGHTS = 1;
const HEADER_BYTES = 56;
const IOVEC_BYTES = 16;
const CMSG_HEADER_BYTES = 16;
const FD_BYTES = 4;
/** Room for more descriptors than a line may have, so that one that has too many is seen. */
const CONTROL_BYTES = 256;

const IOV = HEADER_BYTES;
const CONTROL = HEADER_BYTES + IOVEC_BYTES;

export interface Received {
  /** 0: the other end has closed. */
  readonly lengthBytes: number;
  /** Ours from here on. */
  readonly fds: readonly number[];
  /** There were more descriptors than could be taken; those are lost. */
  readonly isTruncated: boolean;
}

/** Sends and receives without waiting. */
export class SocketMessages {
  readonly #ffi: Ffi;
  /** msghdr, iovec and control data, in one piece that stays where it is. */
  readonly #message = new Uint8Array(CONTROL + CONTROL_BYTES);
  readonly #words = new DataView(this.#message.buffer);

  constructor(ffi: Ffi) {
    this.#ffi = ffi;
    const address = ffi.addressOf(this.#message);
    this.#words.setBigUint64(16, address + BigInt(IOV), true);
    this.#words.setBigUint64(24, 1n, true);
    this.#words.setBigUint64(32, address + BigInt(CONTROL), true);
  }

  /**
   * Sends as much as the other end has room for; descriptors go with the first byte.
   * @param bytes - at least one
   * @param fds - at most 60
   * @throws {KernelError} EAGAIN no room; EPIPE, ECONNRESET the other end is gone; EBADF; ETOOMANYREFS
   */
  send(socket: number, bytes: Uint8Array, fds: readonly number[]): number {
    const length = CMSG_HEADER_BYTES + fds.length * FD_BYTES;
    this.#setBytes(bytes);
    this.#setControlBytes(fds.length === 0 ? 0 : alignUp(length, 8));
    this.#words.setBigUint64(CONTROL, BigInt(length), true);
    this.#words.setInt32(CONTROL + 8, SOL_SOCKET, true);
    this.#words.setInt32(CONTROL + 12, SCM_RIGHTS, true);
    fds.forEach((fd, i) => {
      this.#words.setInt32(CONTROL + CMSG_HEADER_BYTES + i * FD_BYTES, fd, true);
    });
    return this.#ffi.sendmsg(socket, this.#message);
  }

  /** @throws {KernelError} EAGAIN nothing is there; ECONNRESET */
  receive(socket: number, target: Uint8Array): Received {
    this.#setBytes(target);
    this.#setControlBytes(CONTROL_BYTES);
    const lengthBytes = this.#ffi.recvmsg(socket, this.#message);
    return {
      lengthBytes,
      fds: this.#receivedFds(),
      isTruncated: (this.#words.getInt32(48, true) & MSG_CTRUNC) !== 0,
    };
  }

  #setBytes(bytes: Uint8Array): void {
    this.#words.setBigUint64(IOV, this.#ffi.addressOf(bytes), true);
    this.#words.setBigUint64(IOV + 8, BigInt(bytes.length), true);
  }

  #setControlBytes(length: number): void {
    this.#words.setBigUint64(40, BigInt(length), true);
    this.#words.setInt32(48, 0, true);
  }

  #receivedFds(): number[] {
    const fds: number[] = [];
    const end = CONTROL + Number(this.#words.getBigUint64(40, true));
    for (let at = CONTROL; at + CMSG_HEADER_BYTES <= end; ) {
      const length = Number(this.#words.getBigUint64(at, true));
      if (length < CMSG_HEADER_BYTES) break;
      const isRights =
        this.#words.getInt32(at + 8, true) === SOL_SOCKET &&
        this.#words.getInt32(at + 12, true) === SCM_RIGHTS;
      for (let fd = at + CMSG_HEADER_BYTES; isRights && fd < at + length; fd += FD_BYTES)
        fds.push(this.#words.getInt32(fd, true));
      at += alignUp(length, 8);
    }
    return fds;
  }
}
