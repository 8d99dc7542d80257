/**
 * Paths as system calls take them.
 *
 * Paths are absolute: a process of ours has no working directory, so a relative path is EINVAL, not a guess.
 * There are no symbolic links.
 * Source: Linux 7.3 fs/namei.c getname_flags(), link_path_walk()
 * @module
 */
import { NAME_MAX, PATH_MAX } from "../../abi/uapi/fs.ts";
import { KernelError } from "../../base/errno.ts";
import { userString, utf8Length } from "./user-value.ts";

export interface Path {
  /** Components from the root on, without "" and "."; ".." is still in. */
  readonly names: readonly string[];
  /** What the last component was: calls that remove or make a name refuse all but "name". */
  readonly last: "name" | "dot" | "dotdot" | "root";
  /** It ended in "/": only a directory will do. */
  readonly mustBeDirectory: boolean;
}

/**
 * Splits a path of any origin.
 *
 * @throws {KernelError} as {@link userString}; ENOENT when it is empty; EINVAL when it is relative; ENAMETOOLONG
 *   above 4095 bytes, or 255 in one component
 */
export function parsePath(value: unknown, op: string): Path {
  const text = userString(value, PATH_MAX - 1, op, "ENAMETOOLONG");
  if (text === "") throw new KernelError("ENOENT", op, "the path is empty");
  if (text[0] !== "/")
    throw new KernelError("EINVAL", op, `"${text}" is relative, there is no working directory`);
  const names: string[] = [];
  let last: Path["last"] = "root";
  for (const name of text.split("/")) {
    if (name === "") continue;
    last = name === "." ? "dot" : name === ".." ? "dotdot" : "name";
    if (utf8Length(name) > NAME_MAX)
      throw new KernelError("ENAMETOOLONG", op, `a name of more than ${NAME_MAX} bytes`);
    if (last !== "dot") names.push(name);
  }
  return { names, last, mustBeDirectory: text.endsWith("/") || last !== "name" };
}

/** The names of a path that {@link Vfs} has resolved: absolute within a mount, nothing to check any more. */
export function splitResolved(path: string): string[] {
  return path === "/" ? [] : path.slice(1).split("/");
}

/** "/" and the names joined. */
export function joinPath(names: readonly string[]): string {
  return `/${names.join("/")}`;
}
