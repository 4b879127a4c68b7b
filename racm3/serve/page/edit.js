// Edit: a picture, a mask painted over it, and what is to be there.
"use strict";

const editForm = $("#edit form");
const easel = makeEasel($("#easel"), (said) => { $("[role=status]", editForm).textContent = said; });
const edited = dropPlace($("#edit-picture"), ([picture]) => easel.open(picture).then(() => $("#easel canvas").focus()));
const control = dropPlace($("#edit-control"));

kinds.edit = {
  again: asks(editForm,
    async () => {
      const words = editForm.words.value.trim();
      if (!easel.opened()) throw new Error("Give a picture to change first.");
      if (!easel.painted()) throw new Error("Paint over what is to be made anew first.");
      const [picture, { mask, soft, rows }] = await Promise.all([easel.picture(), easel.masks()]);
      const image = control.pictures.length ? [picture, control.pictures[0]] : picture;
      const body = { image, mask, ...(words && { prompt: words }), racm3: settingsOf(editForm) };
      return { path: "/v1/images/edits", multipart: true, body, rows, ...(soft && { soft }) };
    },
    (request, signal, progress) => {
      const { prompt, image } = request.body, given = [image].flat()[0];
      return complete("edit", request, { title: prompt ?? `${given.name}, filled`, given }, signal, progress);
    }),

  async restore({ body: { image, mask, prompt, racm3 }, soft }) {
    const [picture, shown] = [image].flat();
    editForm.words.value = prompt ?? "";
    control.set(shown ? [shown] : []);
    putSettings(editForm, racm3);
    await easel.open(picture, await (soft ?? mask).img(), Boolean(soft));
    $("button[type=submit]", editForm).focus();
  },
};

uses.push(
  { words: "Picture to change", tab: "edit", place: edited },
  { words: "What to put into a picture", tab: "edit", place: control });

/** What was drawn over what was given, as strongly as the alpha of `soft` says, in base64. */
async function blended(given, base64, soft) {
  const [below, above, alpha] = await Promise.all([given.img(), Picture.fromBase64(base64, "").img(), soft.img()]);
  const { naturalWidth: width, naturalHeight: height } = above;
  const sheet = drawn(above, width, height), context = sheet.getContext("2d");
  context.globalCompositeOperation = "destination-in";
  context.drawImage(alpha, 0, 0, width, height);
  const whole = drawn(below, width, height);
  whole.getContext("2d").drawImage(sheet, 0, 0);
  return whole.toDataURL("image/png").split(",")[1];
}

/** A mask painted over a picture. The frame is what the model sees of the picture: a square, all of a square picture.
 *  Strokes are in shares of the frame, and drawn anew whenever one is taken back. */
function makeEasel(fieldset, say) {
  const canvas = $("canvas", fieldset), img = $("img", fieldset), pen = $(".pen", fieldset), sight = $(".sight", fieldset);
  const field = fieldset.elements, context = canvas.getContext("2d", { willReadFrequently: true });
  const INK = "#d6336c", FINE = 4; // the picture is sent at most so many times finer than the model draws
  let opened = null, strokes = [], undone = [], stroke = null, at = [0.5, 0.5]; // `at`: where the keyboard's pen is
  let frame = { x: 0, y: 0, side: 1 }; // in pixels of the picture

  const whole = () => frame.side === img.naturalWidth && frame.side === img.naturalHeight;
  const side = () => (whole() && frame.side <= MOST_PX ? frame.side : Math.round(Math.min(frame.side, FINE * server.imageSize)));

  function draw() {
    const size = canvas.width;
    context.clearRect(0, 0, size, size);
    for (const { tool, width, points, mask } of strokes) {
      context.globalCompositeOperation = { eraser: "destination-out", clear: "destination-out", invert: "source-out" }[tool] ?? "source-over";
      Object.assign(context, { fillStyle: INK, strokeStyle: INK, lineWidth: width * size, lineCap: "round", lineJoin: "round" });
      if (tool === "mask") { context.drawImage(mask, 0, 0, size, size); continue; }
      if (tool === "clear" || tool === "invert") { context.fillRect(0, 0, size, size); continue; }
      const scaled = points.map(([x, y]) => [x * size, y * size]), [[x, y]] = scaled, [right, bottom] = scaled.at(-1);
      if (tool === "box") { context.fillRect(x, y, right - x, bottom - y); continue; }
      context.beginPath();
      context.moveTo(x, y);
      for (const point of scaled) context.lineTo(...point);
      context.stroke();
    }
  }

  /** Where it is painted over, of 0 and 1, row by row. */
  function mask() {
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    return Float32Array.from({ length: data.length / 4 }, (_, i) => (data[4 * i + 3] > 127 ? 1 : 0));
  }

  /** The share of the frame that is painted over. */
  function painted() {
    const cells = mask();
    return cells.reduce((sum, cell) => sum + cell, 0) / cells.length;
  }

  function changed() {
    draw();
    field.undo.disabled = !strokes.length;
    field.redo.disabled = !undone.length;
    say(`${percent(painted())} of the picture will be made anew.`);
  }

  function add(one) {
    strokes.push(one);
    undone = [];
  }

  function down(point) {
    const tool = fieldset.querySelector("[name=tool]:checked").value;
    stroke = { tool, width: field.size.value / 100, points: [point] };
    add(stroke);
    draw();
  }

  function move(point) {
    if (!stroke) return;
    stroke.points.push(point);
    draw();
  }

  function up() {
    if (!stroke) return;
    stroke = null;
    changed();
  }

  function everywhere(tool) {
    add({ tool });
    changed();
  }

  function undo() {
    stroke = null;
    if (strokes.length) undone.push(strokes.pop());
    changed();
  }

  function redo() {
    if (undone.length) strokes.push(undone.pop());
    changed();
  }

  function place(event) {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  function showPen() {
    const width = (field.size.value / 100) * canvas.clientWidth;
    Object.assign(pen.style, {
      left: `${canvas.offsetLeft + at[0] * canvas.clientWidth}px`, top: `${canvas.offsetTop + at[1] * canvas.clientHeight}px`,
      width: `${width}px`, height: `${width}px`,
    });
  }

  /** Reads the frame from its sliders, and lays sight and canvas on it. */
  function showFrame() {
    const { naturalWidth: width, naturalHeight: height } = img, most = Math.min(width, height);
    const size = Math.round((most * field.frame.value) / 100);
    frame = { x: Math.round(((width - size) * field.across.value) / 100), y: Math.round(((height - size) * field.down.value) / 100), side: size };
    for (const node of [sight, canvas]) Object.assign(node.style, {
      left: `${(100 * frame.x) / width}%`, top: `${(100 * frame.y) / height}%`, width: `${(100 * size) / width}%`, height: `${(100 * size) / height}%`,
    });
    field.across.disabled = size === width;
    field.down.disabled = size === height;
    $(".cut", fieldset).textContent = whole() ? "The model sees all of the picture."
      : `The model sees the bright square, ${size} × ${size} of ${width} × ${height} pixels; what is outside is not part of the result.`;
    canvas.width = canvas.height = side();
    draw();
    showPen();
  }

  canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); down(place(event)); });
  canvas.addEventListener("pointermove", (event) => move(place(event)));
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, up);
  canvas.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 1 / 64 : 1 / 16, control = event.ctrlKey || event.metaKey, key = event.key.toLowerCase();
    const by = { arrowleft: [-step, 0], arrowright: [step, 0], arrowup: [0, -step], arrowdown: [0, step] }[key];
    if (by) {
      at = at.map((value, i) => Math.min(Math.max(value + by[i], 0), 1));
      move(at);
    } else if (key === " ") {
      if (stroke) up();
      else { down(at); say("The pen is down."); }
    } else if (key === "[" || key === "]") field.size.value = Number(field.size.value) + (key === "[" ? -5 : 5);
    else if (control && (key === "y" || (key === "z" && event.shiftKey))) redo();
    else if (control && key === "z") undo();
    else return;
    event.preventDefault();
    showPen();
  });
  canvas.addEventListener("focus", showPen);
  field.size.addEventListener("input", showPen);
  for (const name of ["frame", "across", "down"]) field[name].addEventListener("input", showFrame);
  field.undo.addEventListener("click", undo);
  field.redo.addEventListener("click", redo);
  field.invert.addEventListener("click", () => everywhere("invert"));
  field.clear.addEventListener("click", () => everywhere("clear"));
  field.save.addEventListener("click", async () => {
    const { mask } = await masks();
    saveAs(mask.blob, mask.name);
    const sent = await picture();
    if (sent !== opened) saveAs(sent.blob, sent.name);
  });

  /** The picture as it is sent: as it was given, or the frame of it, scaled. */
  async function picture() {
    if (side() === frame.side && whole()) return opened;
    const size = side();
    return Picture.fromCanvas(drawn(img, size, size, [frame.x, frame.y, frame.side, frame.side]), `${opened.name.replace(/\.\w+$/, "")}-cut.png`);
  }

  /** `mask` as the API takes it, transparent where the picture is to be made anew. With a feather it is wider by that,
   *  and the alpha of `soft` says how strongly what is drawn covers what was given. `rows`: of codes to be drawn. */
  async function masks() {
    const size = canvas.width, cells = mask(), radius = Math.round((field.feather.value / 100) * size);
    const soft = radius ? blurred(cells, size, radius).map((value, i) => Math.max(value, cells[i])) : null;
    const hidden = (soft ?? cells).map((value) => (value > 0.02 ? 1 : 0));
    const [gridRows] = server.grid, rows = new Set();
    hidden.forEach((one, i) => { if (one) rows.add(Math.floor((Math.floor(i / size) * gridRows) / size)); });
    return {
      mask: await sheet(hidden.map((one) => 1 - one), size, "mask.png"),
      soft: soft && await sheet(soft, size, "soft.png"), rows: rows.size,
    };
  }

  function sheet(alpha, size, name) {
    const own = el("canvas", { width: size, height: size }), pixels = new ImageData(size, size);
    alpha.forEach((value, i) => { pixels.data[4 * i + 3] = Math.round(255 * value); });
    own.getContext("2d").putImageData(pixels, 0, 0);
    return Picture.fromCanvas(own, name);
  }

  return {
    painted, picture, masks,
    opened: () => opened,
    box(left, top, right, bottom) {
      add({ tool: "box", width: 0, points: [[left, top], [right, bottom]] });
      changed();
    },
    /** Opens a picture, with what was painted over it: `known`, a mask as the API takes it or, if `soft`, its alpha. */
    async open(picture, known = null, soft = false) {
      const loaded = await picture.img();
      fieldset.hidden = false;
      opened = picture;
      [strokes, undone, stroke, at] = [[], [], null, [0.5, 0.5]];
      Object.assign(img, { src: picture.url, alt: `The picture to change: ${picture.name}` });
      await img.decode();
      Object.assign(field.frame, { value: 100 });
      Object.assign(field.across, { value: 50 });
      Object.assign(field.down, { value: 50 });
      $(".framing", fieldset).open = loaded.naturalWidth !== loaded.naturalHeight;
      if (known) strokes.push({ tool: "mask", mask: known });
      if (known && !soft) strokes.push({ tool: "invert" });
      showFrame();
      changed();
    },
  };
}

/** A square of numbers, each the mean of those around it: two passes, across and down. */
function blurred(cells, size, radius) {
  const pass = (from, step, line) => {
    const to = new Float32Array(from.length);
    for (let i = 0; i < size; i++) {
      for (let j = 0; j < size; j++) {
        let sum = 0, count = 0;
        for (let k = Math.max(0, j - radius); k <= Math.min(size - 1, j + radius); k++) { sum += from[i * line + k * step]; count++; }
        to[i * line + j * step] = sum / count;
      }
    }
    return to;
  };
  return pass(pass(cells, 1, size), size, 1);
}
