/**
 * In the guest: how long the bare ioctls of live update take, without anything of ours around them.
 *
 * `linux-program.js preserve` makes a memfd of each folio size, times PRESERVE_FD of it again and again, and jumps on a line
 * of standard input; `linux-program.js retrieve` times RETRIEVE_FD of each in the next kernel. Prints a JSON object a line.
 * @module
 */
import { writeFileSync } from "node:fs";
import { LINUX_REBOOT_CMD_KEXEC } from "../src/abi/uapi/reboot.ts";
import { MIB } from "../src/base/units.ts";
import {
  createSession,
  finish,
  preserveFd,
  retrieveFd,
  retrieveSession,
} from "../src/host/liveupdate.ts";
import { LinuxHost } from "../src/linux/linux-host.ts";
import { type BareResult, FOLIO_SIZES, type FolioSize } from "./linux-result.ts";
import { nowNs } from "./measure.ts";

const SHMEM_HUGE = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
const TOKEN = 1n;
const CHUNK = new Uint8Array(MIB).fill(0x5a);

const host = new LinuxHost();
const device = host.open("/dev/liveupdate", 0);
const [stage, bytes, rounds] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];

if (stage === "preserve") {
  for (const folios of FOLIO_SIZES) preserve(folios);
  host.print("preserved");
  process.stdin.once("data", () => {
    const { release, commandLine } = host;
    host.kexecFileLoad(`/boot/vmlinuz-${release}`, `/boot/initrd.img-${release}`, commandLine);
    host.reboot(LINUX_REBOOT_CMD_KEXEC);
  });
} else {
  for (const folios of FOLIO_SIZES) retrieve(folios);
  host.close(device);
}

/** The session of the last round stays open, for the jump. */
function preserve(folios: FolioSize): void {
  writeFileSync(SHMEM_HUGE, folios === "2 MiB" ? "always" : "never");
  const fd = host.memfdCreate(folios, 0);
  for (let offset = 0; offset < bytes; offset += CHUNK.length) host.pwrite(fd, CHUNK, offset);
  for (let round = rounds; ; round--) {
    const session = createSession(host, device, folios);
    const startNs = nowNs();
    preserveFd(host, session, fd, TOKEN);
    tell({ call: "PRESERVE_FD", folios, ns: nowNs() - startNs });
    if (round === 1) return;
    host.close(session);
  }
}

function retrieve(folios: FolioSize): void {
  const session = retrieveSession(host, device, folios);
  const startNs = nowNs();
  const fd = retrieveFd(host, session, TOKEN);
  tell({ call: "RETRIEVE_FD", folios, ns: nowNs() - startNs });
  const first = new Uint8Array(1);
  host.pread(fd, first, bytes - 1);
  if (first[0] !== CHUNK[0]) throw new Error(`the last byte of the ${folios} file is ${first[0]}`);
  finish(host, session);
  host.close(session);
  host.close(fd);
}

function tell(result: BareResult): void {
  host.print(JSON.stringify(result));
}
