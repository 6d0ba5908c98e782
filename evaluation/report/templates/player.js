// The players: a clip's frames with outline, long axis and discs, linked with its area curve.
"use strict";
{
  const SVG = "http://www.w3.org/2000/svg";
  const OUTLINE_STEPS = 8;  // outlines are stored in eighths of a pixel
  const DEFAULT_FRAME_MS = 40;  // where the clip does not know
  const style = getComputedStyle(document.documentElement);
  const OUTLINE = style.getPropertyValue("--outline"), AXIS = style.getPropertyValue("--axis");

  /** The outlines of each frame as one path each, from the film's packed integers. */
  function unpackOutlines(packed, frames) {
    const bytes = Uint8Array.from(atob(packed), letter => letter.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    let place = 0;
    const next = () => view.getUint16(2 * place++, true);
    return Array.from({length: frames}, () => {
      const path = new Path2D();
      for (let lines = next(); lines > 0; lines--) {
        for (let points = next(), first = true; points > 0; points--, first = false) {
          const x = next() / OUTLINE_STEPS, y = next() / OUTLINE_STEPS;
          first ? path.moveTo(x, y) : path.lineTo(x, y);
        }
        path.closePath();
      }
      return path;
    });
  }

  /** One path through lines of points. */
  function pathOf(lines) {
    const path = new Path2D();
    for (const line of lines) line.forEach(([x, y], index) => (index ? path.lineTo(x, y) : path.moveTo(x, y)));
    return path;
  }

  class Player {
    constructor(article) {
      this.article = article;
      this.root = article.querySelector(".player");
      this.stage = article.querySelector(".stage");
      this.canvas = article.querySelector("canvas");
      this.readout = article.querySelector("output");
      this.playButton = article.querySelector(".play");
      this.film = null;  // read when the clip comes near
      this.sheet = null;
      this.index = 0;  // of the frame shown, in the film's frames
      this.timer = 0;
      this.listen();
    }

    /** Reads the film and decodes its sheet, unless that is done. */
    async open() {
      if (!this.film) this.read();
      if (this.sheet) return;
      const sheet = new Image();
      sheet.src = "data:image/webp;base64," + this.root.querySelector("script.sheet").textContent;
      this.sheet = sheet;
      await sheet.decode().then(() => this.draw(), () => { this.readout.textContent = "the pictures are damaged"; });
    }

    /** Gives the decoded sheet back: a hundred of them would fill the memory. */
    close() {
      this.pause();
      this.sheet = null;
    }

    read() {
      this.film = JSON.parse(this.root.querySelector("script.film").textContent);
      const {frames, outlines, marks, beats} = this.film;
      this.outlines = unpackOutlines(outlines, frames.length);
      this.marks = Object.fromEntries(Object.entries(marks).map(([frame, {base, axis, discs}]) =>
        [frame, {axis: pathOf([base, axis]), discs: pathOf(discs)}]));
      this.phases = Object.fromEntries(beats.flatMap(([ed, es]) => [[es, "ES"], [ed, "ED"]]));
      this.makeCursor();
      const first = this.article.querySelector(".stills figure");
      this.goTo(first ? Number(first.dataset.frame) : frames[0]);
    }

    makeCursor() {
      this.curve = this.article.querySelector(".curve svg");
      if (!this.curve) return;
      this.scale = this.curve.dataset.scale.split(" ").map(Number);
      this.cursor = document.createElementNS(SVG, "g");
      this.cursor.setAttribute("class", "cursor");
      this.line = this.cursor.appendChild(document.createElementNS(SVG, "line"));
      this.dot = this.cursor.appendChild(document.createElementNS(SVG, "circle"));
      this.dot.setAttribute("r", 4.5);
      this.curve.append(this.cursor);
    }

    listen() {
      this.root.addEventListener("keydown", event => this.onKey(event));
      this.playButton.addEventListener("click", () => this.toggle());
      this.stage.addEventListener("click", () => this.toggle());
      for (const box of this.root.querySelectorAll("input")) box.addEventListener("change", () => this.draw());
      for (const still of this.article.querySelectorAll(".stills figure")) {
        still.addEventListener("click", () => {
          this.stage.focus({preventScroll: true});
          this.jump(Number(still.dataset.frame));
        });
      }
      const curve = this.article.querySelector(".curve svg");
      if (!curve) return;
      const scrub = event => {
        if (event.type === "pointermove" && !event.buttons) return;
        if (event.type === "pointerdown") curve.setPointerCapture(event.pointerId);
        const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(curve.getScreenCTM().inverse());
        this.open();
        this.stage.focus({preventScroll: true});
        this.jump((at.x - this.scale[0]) / this.scale[1]);
      };
      curve.addEventListener("pointerdown", scrub);
      curve.addEventListener("pointermove", scrub);
    }

    onKey(event) {
      if (event.altKey || event.ctrlKey || event.metaKey || event.target.matches("select")) return;
      const last = this.film ? this.film.frames.length - 1 : 0;
      const first = this.phaseFrames();
      const actions = {
        ArrowRight: () => this.step(1), ArrowUp: () => this.step(1),
        ArrowLeft: () => this.step(-1), ArrowDown: () => this.step(-1),
        PageUp: () => this.step(10), PageDown: () => this.step(-10),
        Home: () => this.step(-last), End: () => this.step(last),
        d: () => this.jump(first[0]), s: () => this.jump(first[1]),
      };
      if (event.target === this.stage) actions[" "] = () => this.toggle();
      const action = actions[event.key];
      if (!action) return;
      event.preventDefault();
      this.open();
      action();
    }

    /** End-diastole and end-systole of the most typical beat. */
    phaseFrames() {
      return [...this.article.querySelectorAll(".stills figure")].map(still => Number(still.dataset.frame));
    }

    toggle() {
      this.timer ? this.pause() : this.play();
    }

    play() {
      this.open();
      this.root.classList.add("playing");
      this.playButton.setAttribute("aria-label", "Pause");
      const {frames} = this.film;
      if (frames.length < 2) return this.pause();
      // A long clip shows every second or third frame: each then lasts as long as those it stands for.
      const each = (this.film.frame_time_ms || DEFAULT_FRAME_MS) * (frames.at(-1) - frames[0]) / (frames.length - 1);
      let before = performance.now();
      const tick = now => {
        const wait = each / Number(this.root.querySelector(".speed").value);
        const steps = Math.floor((now - before) / wait);
        if (steps > 0) {
          before += steps * wait;
          this.show((this.index + steps) % frames.length);
        }
        this.timer = requestAnimationFrame(tick);
      };
      this.timer = requestAnimationFrame(tick);
    }

    pause() {
      cancelAnimationFrame(this.timer);
      this.timer = 0;
      this.root.classList.remove("playing");
      this.playButton.setAttribute("aria-label", "Play");
      if (this.film) this.show(this.index);
    }

    step(by) {
      this.pause();
      this.show(Math.min(Math.max(this.index + by, 0), this.film.frames.length - 1));
    }

    jump(frame) {
      this.pause();
      this.open();
      this.goTo(frame);
    }

    /** Shows the frame of the clip that is nearest among those of the film. */
    goTo(frame) {
      if (!Number.isFinite(frame)) return;
      const {frames} = this.film;
      let nearest = 0;
      frames.forEach((number, index) => {
        if (Math.abs(number - frame) < Math.abs(frames[nearest] - frame)) nearest = index;
      });
      this.show(nearest);
    }

    show(index) {
      this.index = index;
      const frame = this.film.frames[index], {area, unit, frame_time_ms: time} = this.film;
      const words = [this.phases[frame], `frame ${frame}`];
      if (time) words.push(`${(frame * time / 1000).toFixed(3)} s`);
      if (area.length) words.push(`${area[index].toFixed(unit === "px" ? 0 : 1)} ${unit}`);
      this.readout.textContent = words.filter(Boolean).join(" · ");
      this.stage.setAttribute("aria-valuenow", frame);
      if (!this.timer) this.stage.setAttribute("aria-valuetext", words.filter(Boolean).join(", "));
      this.moveCursor(frame);
      this.draw();
    }

    moveCursor(frame) {
      if (!this.cursor) return;
      const [x0, dx, y0, dy] = this.scale;
      const x = x0 + frame * dx, y = y0 + this.film.area[this.index] * dy;
      for (const [name, value] of [["x1", x], ["x2", x], ["y1", y0], ["y2", y]]) this.line.setAttribute(name, value);
      this.dot.setAttribute("cx", x);
      this.dot.setAttribute("cy", y);
    }

    draw() {
      if (!this.sheet || !this.sheet.complete || !this.sheet.naturalWidth) return;
      const {width, height, sheet} = this.film;
      const ratio = Math.min(devicePixelRatio || 1, 3);
      const wide = Math.round(this.stage.clientWidth * ratio), high = Math.round(wide * height / width);
      if (this.canvas.width !== wide || this.canvas.height !== high) Object.assign(this.canvas, {width: wide, height: high});
      const pen = this.canvas.getContext("2d");
      const left = this.index % sheet.columns * sheet.width, top = Math.floor(this.index / sheet.columns) * sheet.height;
      pen.setTransform(1, 0, 0, 1, 0, 0);
      pen.imageSmoothingQuality = "high";
      pen.drawImage(this.sheet, left, top, sheet.width, sheet.height, 0, 0, wide, high);
      pen.scale(wide / width, high / height);
      const line = width / wide * ratio;  // one pixel of the page, in pixels of the film
      const marks = this.marks[this.film.frames[this.index]];
      if (marks && this.root.querySelector(".show-marks").checked) {
        this.stroke(pen, marks.discs, "rgb(255 255 255 / 60%)", line);
        pen.setLineDash([7 * line, 4 * line]);
        this.stroke(pen, marks.axis, AXIS, 2 * line);
        pen.setLineDash([]);
      }
      if (this.root.querySelector(".show-outline").checked) this.stroke(pen, this.outlines[this.index], OUTLINE, 2 * line);
    }

    stroke(pen, path, colour, width) {
      Object.assign(pen, {strokeStyle: colour, lineWidth: width, lineJoin: "round"});
      pen.stroke(path);
    }
  }

  const players = new Map();
  for (const article of document.querySelectorAll("article.clip")) {
    if (article.querySelector(".player")) players.set(article, new Player(article));
  }
  const near = new IntersectionObserver(entries => {
    for (const {target, isIntersecting} of entries) {
      const player = players.get(target);
      isIntersecting ? player.open() : player.close();
    }
  }, {rootMargin: "600px 0px"});
  for (const article of players.keys()) near.observe(article);
  addEventListener("resize", () => {
    for (const player of players.values()) player.draw();
  });
}
