/** An image with thousands of preserved extents, for what must not grow with an image's size. @module */
import { O_CREAT, O_RDWR } from "../../src/abi/uapi/fs.ts";
import { GIB, PAGE_SIZE } from "../../src/base/units.ts";
import { createSession, preserveFd } from "../../src/host/liveupdate.ts";
import { saveRawImage } from "./raw-image.ts";
import { jumpOnce } from "./session-host.ts";

/** Writes a raw image of 1 GiB whose session holds two files of so many extents together, of 4 KiB each. */
export function saveFragmentedImage(path: string, extents: number): void {
  jumpOnce(
    GIB,
    (host) => {
      host.mkdir("/mnt/guests");
      host.mount("guests", "/mnt/guests", "memfs", "");
      const files = ["a", "b"].map((name) => host.open(`/mnt/guests/${name}`, O_RDWR | O_CREAT));
      for (const fd of files) host.ftruncate(fd, (extents / 2) * PAGE_SIZE);
      // In turns, so that no two pages of one file are neighbours.
      for (let i = 0; i < extents; i++)
        host.fallocate(files[i % 2], 0, Math.floor(i / 2) * PAGE_SIZE, PAGE_SIZE);
      const device = host.open("/dev/liveupdate", O_RDWR);
      const session = createSession(host, device, "fragmented");
      for (const [i, fd] of files.entries()) preserveFd(host, session, fd, BigInt(i + 1));
    },
    ({ ram }) => saveRawImage(path, ram),
  );
}
