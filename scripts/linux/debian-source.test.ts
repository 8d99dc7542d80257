import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { parseLines, parseStanzas } from "./debian-source.ts";

describe("apt's sources", () => {
  test("deb822 stanzas are read with their keys; disabled ones and sources of sources are not", () => {
    const text = [
      "# a comment",
      "Types: deb deb-src",
      "URIs: http://one.example/debian http://two.example/debian",
      "Suites: bookworm bookworm-updates",
      "Components: main",
      "Signed-By:",
      " -----BEGIN PGP-----",
      " .",
      " -----END PGP-----",
      "",
      "Types: deb",
      "Enabled: no",
      "URIs: http://off.example/debian",
      "Suites: bookworm",
      "",
      "Types: deb-src",
      "URIs: http://sources.example/debian",
      "Suites: bookworm",
    ].join("\n");
    const signedBy = "\n -----BEGIN PGP-----\n .\n -----END PGP-----";
    const suites = ["bookworm", "bookworm-updates"];
    assert.deepEqual(parseStanzas(text), [
      { uri: "http://one.example/debian", suites, signedBy },
      { uri: "http://two.example/debian", suites, signedBy },
    ]);
  });

  test("lines are read with their options", () => {
    const text = [
      "deb http://a.example/debian trixie main",
      "deb [arch=amd64 signed-by=/usr/share/keyrings/k.gpg] https://b.example/debian sid main contrib",
      "# deb http://off.example/debian trixie main",
      "deb-src http://sources.example/debian trixie main",
    ].join("\n");
    assert.deepEqual(parseLines(text), [
      { uri: "http://a.example/debian", suites: ["trixie"], signedBy: null },
      {
        uri: "https://b.example/debian",
        suites: ["sid"],
        signedBy: "/usr/share/keyrings/k.gpg",
      },
    ]);
  });
});
