// The viewer of a page: CTs with label maps and their differences, drawn by NiiVue. All volumes are in the page.

/** The lowest and highest HU of each window. */
const WINDOWS = { abdomen: [-160, 240], liver: [-20, 180], bone: [-450, 1050], lung: [-1350, 150] };
/** NiiVue's number of each view, and the axis that the slider moves along. */
const VIEWS = { planes: [3, 2], axial: [0, 2], coronal: [1, 1], sagittal: [2, 0], render: [4, 2] };
const AXES = ["Sagittal", "Coronal", "Axial"];
const OPACITY = 0.6, OPACITY_BELOW_DIFFERENCES = 0.2;

class Viewer {
  constructor(section) {
    this.section = section;
    this.loading = Promise.resolve();
    section.addEventListener("input", (event) => this.onInput(event.target));
    section.addEventListener("click", (event) => this.onClick(event.target));
  }

  /** Load NiiVue and show the chosen case, when that is asked for the first time. */
  start() {
    this.started ??= this.open().catch((error) => this.fail(error));
    return this.started;
  }

  async open() {
    await loadNiivue();
    this.data = JSON.parse(document.getElementById("viewer-data").textContent);
    this.niivue = new Niivue({
      backColor: [0, 0, 0, 1],
      clipPlaneHotKey: "", // keys that would change what the controls do not show
      cycleClipPlaneHotKey: "",
      viewModeHotKey: "",
      crosshairColor: [1, 1, 1, 0.5],
      crosshairWidth: 0.5,
      dragAndDropEnabled: false,
      isRadiologicalConvention: true,
      loadingText: "",
      logLevel: "silent",
      multiplanarLayout: 2, // a grid
      multiplanarShowRender: 1, // always
    });
    await this.niivue.attachToCanvas(this.section.querySelector("canvas"));
    this.niivue.onLocationChange = () => this.showPlace();
    await this.showCase();
  }

  fail(error) {
    this.say(`The viewer cannot be shown: ${error.message}.`);
    this.section.querySelector(".viewer").hidden = true;
  }

  say(text) {
    const message = this.section.querySelector(".failure");
    message.textContent = text;
    message.hidden = !text;
  }

  onInput(input) {
    if (!this.ct) return;
    if (input.name === "case") this.showCase();
    else if (input.name === "slice") this.moveToSlice();
    else if (input.name === "window") this.setWindow();
    else if (input.name === "view") this.setView();
    else this.draw();
  }

  onClick(button) {
    if (button.name !== "organs") return;
    for (const input of this.inputs("organ")) input.checked = button.value === "all";
    if (this.ct) this.draw();
  }

  /** Scroll to the viewer and show a case. */
  async goTo(name) {
    this.section.scrollIntoView();
    this.input("case").value = name;
    await this.start();
    await this.showCase();
  }

  /** Show the chosen case: one after the other, and of several that were chosen meanwhile only the last. */
  showCase() {
    const wanted = this.input("case").selectedIndex;
    this.loading = this.loading.then(async () => {
      if (wanted !== this.input("case").selectedIndex) return;
      this.say("");
      if (wanted !== this.shown) await this.load(wanted);
    }).catch((error) => this.say(`${this.data.cases[wanted].name} cannot be shown: ${error.message}.`));
    return this.loading;
  }

  async load(index) {
    const { name, caption, image, reference, predictions } = this.data.cases[index];
    // The number of each label map: 0 is the reference, the others are the predictions in the order of their titles.
    const numbered = [reference, ...predictions].map((volume, number) => [number, volume]).filter(([, volume]) => volume);
    const [ct, ...labels] = await Promise.all([image, ...numbered.map(([, volume]) => volume)].map(unpack));
    this.shown = undefined; // a failure from here on leaves no case
    for (const volume of [...this.niivue.volumes]) this.niivue.removeVolume(volume);
    // The last volume is for the differences: any label map has the voxels that it needs.
    for (const file of [ct, ...labels, labels[0].slice(0)]) await this.niivue.loadFromArrayBuffer(file, "volume.nii");
    const volumes = [...this.niivue.volumes];
    this.ct = volumes.shift();
    this.differences = volumes.pop();
    this.maps = new Map(numbered.map(([number], place) => [number, volumes[place]]));
    this.section.querySelector(".caption").textContent = caption;
    for (const input of this.inputs("map")) input.disabled = !this.maps.has(Number(input.value));
    const compared = this.input("compared");
    for (const option of compared?.options ?? []) option.disabled = option.value && !this.maps.has(Number(option.value));
    if (compared?.selectedOptions[0].disabled) compared.value = ""; // no difference is shown, which is not none there
    this.setWindow();
    this.draw();
    this.niivue.scene.crosshairPos[2] = (fullestSlice(volumes[0].img, this.slices(2)) + 0.5) / this.slices(2);
    this.setView();
    this.shown = index;
    this.section.dataset.shown = name;
  }

  /** Draw the chosen label maps, classes and differences. */
  draw() {
    const chosen = new Set(this.chosen("map"));
    const classes = new Set(this.chosen("organ"));
    const compared = this.maps.get(Number(this.input("compared")?.value || NaN));
    const colors = this.data.labels.map(({ id, color }) => ({ id, color, visible: classes.has(id) }));
    for (const [number, map] of this.maps) {
      map.setColormapLabel(lookupTable(colors));
      map.opacity = !chosen.has(number) ? 0 : compared ? OPACITY_BELOW_DIFFERENCES : OPACITY;
    }
    const kinds = this.data.differences.map(([, color], place) => ({ id: place + 1, color, visible: true }));
    this.differences.setColormapLabel(lookupTable(kinds));
    this.differences.opacity = compared ? 1 : 0;
    if (compared) markDifferences(this.differences.img, this.maps.get(0).img, compared.img, classes);
    this.niivue.updateGLVolume();
  }

  setWindow() {
    [this.ct.cal_min, this.ct.cal_max] = WINDOWS[this.input("window").value];
    this.niivue.updateGLVolume();
  }

  setView() {
    const [view, axis] = VIEWS[this.input("view").value];
    this.axis = axis;
    this.section.querySelector(".axis").textContent = AXES[axis];
    this.input("slice").max = this.slices(axis) - 1;
    this.niivue.setSliceType(view);
    this.showPlace();
  }

  moveToSlice() {
    this.niivue.scene.crosshairPos[this.axis] = (Number(this.input("slice").value) + 0.5) / this.slices(this.axis);
    this.niivue.drawScene();
    this.showPlace();
  }

  showPlace() {
    const slices = this.slices(this.axis);
    const slice = Math.min(slices - 1, Math.floor(this.niivue.scene.crosshairPos[this.axis] * slices));
    this.input("slice").value = slice;
    this.input("place").textContent = `${slice + 1} of ${slices}`;
  }

  slices(axis) {
    return this.ct.dims[axis + 1];
  }

  input(name) {
    return this.section.querySelector(`[name="${name}"]`);
  }

  inputs(name) {
    return [...this.section.querySelectorAll(`[name="${name}"]`)];
  }

  chosen(name) {
    return this.inputs(name).filter((input) => input.checked && !input.disabled).map((input) => Number(input.value));
  }
}

/** Mark where a label map differs from the reference in some classes: 1 missed, 2 added, 3 another class. */
function markDifferences(marks, reference, found, classes) {
  for (let voxel = 0; voxel < marks.length; voxel++) {
    const expected = reference[voxel], label = found[voxel];
    const differs = label !== expected && (classes.has(label) || classes.has(expected));
    marks[voxel] = !differs ? 0 : label === 0 ? 1 : expected === 0 ? 2 : 3;
  }
}

/** The axial slice with the most labelled voxels. */
function fullestSlice(labels, slices) {
  const counts = new Array(slices).fill(0);
  const size = labels.length / slices;
  labels.forEach((label, voxel) => { if (label) counts[Math.floor(voxel / size)]++; });
  return counts.some(Boolean) ? counts.indexOf(Math.max(...counts)) : Math.floor(slices / 2);
}

/** Colours as NiiVue expects them. */
function lookupTable(colors) {
  const channel = (place) => [0, ...colors.map(({ color }) => parseInt(color.slice(1 + 2 * place, 3 + 2 * place), 16))];
  return {
    R: channel(0),
    G: channel(1),
    B: channel(2),
    A: [0, ...colors.map(({ visible }) => (visible ? 255 : 0))],
    I: [0, ...colors.map(({ id }) => id)],
    labels: ["", ...colors.map(() => "")],
  };
}

async function unpack(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let place = 0; place < text.length; place++) bytes[place] = text.charCodeAt(place);
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

async function loadNiivue() {
  const script = document.createElement("script");
  const code = new TextDecoder().decode(await unpack(document.getElementById("niivue").textContent));
  script.textContent = `(() => {${code}})()`;
  document.head.append(script);
}

/** Start the viewer when it is scrolled into view, so that the page opens at once. */
function startWhenSeen(viewer) {
  const observer = new IntersectionObserver(([entry]) => {
    if (!entry.isIntersecting) return;
    observer.disconnect();
    viewer.start();
  }, { rootMargin: "300px" });
  observer.observe(viewer.section);
}

if (document.createElement("canvas").getContext("webgl2")) {
  const section = document.getElementById("viewer");
  section.hidden = false;
  section.viewer = new Viewer(section);
  for (const button of document.querySelectorAll("[data-case]")) {
    button.disabled = false;
    button.addEventListener("click", () => section.viewer.goTo(button.dataset.case));
  }
  startWhenSeen(section.viewer);
} else {
  document.getElementById("without-viewer").hidden = false;
}
