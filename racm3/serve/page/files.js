// Files that the page writes and reads: PNGs that carry their request, and zip archives.
"use strict";

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

/** The CRC-32 of bytes, which both formats use. */
function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

function joined(pieces) {
  const whole = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) { whole.set(piece, at); at += piece.length; }
  return whole;
}


// PNG: a signature, then chunks of length, type, data and CRC. A text is an iTXt chunk: keyword, flags, UTF-8.

const KEYWORD = "racm3";
const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const HEAD_BYTES = 33; // the signature and the IHDR chunk, which is always first

/** The PNG with a text in it, under our keyword. */
function pngWithText(png, text) {
  const data = joined([new TextEncoder().encode(`${KEYWORD}\0\0\0\0\0`), new TextEncoder().encode(text)]);
  const body = joined([new TextEncoder().encode("iTXt"), data]);
  const chunk = new Uint8Array(body.length + 8), view = new DataView(chunk.buffer);
  view.setUint32(0, data.length);
  chunk.set(body, 4);
  view.setUint32(4 + body.length, crc32(body));
  return joined([png.subarray(0, HEAD_BYTES), chunk, png.subarray(HEAD_BYTES)]);
}

/** The text under our keyword, or null. */
function textOfPng(png) {
  if (SIGNATURE.some((byte, i) => png[i] !== byte)) return null;
  const view = new DataView(png.buffer, png.byteOffset, png.byteLength), decoder = new TextDecoder();
  for (let at = SIGNATURE.length; at + 12 <= png.length;) {
    const length = view.getUint32(at), type = decoder.decode(png.subarray(at + 4, at + 8));
    const data = png.subarray(at + 8, at + 8 + length);
    const head = `${KEYWORD}\0\0\0\0\0`;
    if (type === "iTXt" && decoder.decode(data.subarray(0, head.length)) === head) return decoder.decode(data.subarray(head.length));
    at += 12 + length;
  }
  return null;
}


// Zip: each file with a head, then the list of them. Pictures are packed already, so all is stored as it is.

/** A zip archive of { name, bytes }; of files with one name the later ones get a number. */
function zip(files) {
  const pieces = [], list = [], taken = new Set();
  let at = 0;
  for (const { name, bytes } of files) {
    const own = new TextEncoder().encode(uniqueName(name, taken));
    const entry = [ // what both heads say
      [2, 20], [2, 0x800], [2, 0], [2, 0], [2, 0x21], // version, names in UTF-8, stored, 0:00 on 1980-01-01
      [4, crc32(bytes)], [4, bytes.length], [4, bytes.length], [2, own.length], [2, 0],
    ];
    pieces.push(numbers([[4, 0x04034b50], ...entry]), own, bytes);
    list.push(numbers([[4, 0x02014b50], [2, 20], ...entry, [2, 0], [2, 0], [2, 0], [4, 0], [4, at]]), own);
    at += 30 + own.length + bytes.length;
  }
  const count = list.length / 2, listBytes = list.reduce((sum, piece) => sum + piece.length, 0);
  const end = numbers([[4, 0x06054b50], [2, 0], [2, 0], [2, count], [2, count], [4, listBytes], [4, at], [2, 0]]);
  return new Blob([...pieces, ...list, end], { type: "application/zip" });
}

/** Little-endian numbers, each [bytes, value]. */
const numbers = (fields) => Uint8Array.from(fields.flatMap(([size, value]) =>
  Array.from({ length: size }, (_, i) => (value >>> (8 * i)) & 255)));

function uniqueName(name, taken) {
  const [, stem, extension] = /^(.*?)(\.[^.]*)?$/.exec(name);
  let own = name;
  for (let i = 2; taken.has(own); i++) own = `${stem}-${i}${extension ?? ""}`;
  taken.add(own);
  return own;
}
