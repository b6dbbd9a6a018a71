// The viewer of a page: CTs with label maps and their differences, drawn by NiiVue. All volumes are in the page.

/** The lowest and highest HU of each window. */
const WINDOWS = { abdomen: [-160, 240], liver: [-20, 180], bone: [-450, 1050], lung: [-1350, 150] };
/** NiiVue's numbers of the views. */
const VIEWS = { axial: 0, coronal: 1, sagittal: 2, planes: 3, render: 4 };
const OPACITY = 0.6, OPACITY_BELOW_DIFFERENCES = 0.2;

class Viewer {
  constructor(section, data) {
    this.section = section;
    this.data = data;
    section.addEventListener("input", (event) => this.onInput(event.target));
    section.addEventListener("click", (event) => this.onClick(event.target));
    document.addEventListener("click", (event) => this.onLink(event.target));
  }

  async start() {
    this.niivue = new Niivue({
      backColor: [0, 0, 0, 1],
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
    await this.showCase(0);
  }

  onInput(input) {
    if (input.name === "case") this.showCase(input.selectedIndex);
    else if (input.name === "slice") this.moveToSlice();
    else if (input.name === "window") this.setWindow();
    else if (input.name === "view") this.setView();
    else this.draw();
  }

  onClick(button) {
    if (button.name !== "organs") return;
    for (const input of this.inputs("organ")) input.checked = button.value === "all";
    this.draw();
  }

  // A button elsewhere in the page that shows a case.
  onLink(button) {
    const index = this.data.cases.findIndex(({ name }) => name === button.dataset?.case);
    if (index < 0) return;
    this.input("case").selectedIndex = index;
    this.section.scrollIntoView();
    this.showCase(index);
  }

  async showCase(index) {
    const { image, maps, caption } = this.data.cases[index];
    const [ct, ...labels] = await Promise.all([image, ...Object.values(maps)].map(unpack));
    for (const volume of [...this.niivue.volumes]) this.niivue.removeVolume(volume);
    // The last volume is for the differences: any label map has the voxels that it needs.
    for (const file of [ct, ...labels, labels[0].slice(0)]) await this.niivue.loadFromArrayBuffer(file, "volume.nii");
    [this.ct, ...this.maps] = this.niivue.volumes;
    this.differences = this.maps.pop();
    this.names = Object.keys(maps);
    this.section.querySelector(".caption").textContent = caption;
    for (const input of this.inputs("map")) input.disabled = !this.names.includes(input.value);
    this.setWindow();
    this.setView();
    this.draw();
    this.input("slice").max = this.slices - 1;
    this.input("slice").value = fullestSlice(this.maps[0].img, this.slices);
    this.moveToSlice();
    this.section.dataset.shown = this.data.cases[index].name;
  }

  // Show the chosen label maps, classes and differences.
  draw() {
    const chosen = new Set(this.chosen("map"));
    const classes = new Set(this.chosen("organ").map(Number));
    const differ = this.chosen("differences").length > 0;
    const colors = this.data.labels.map(({ id, color }) => ({ id, color, visible: classes.has(id) }));
    this.maps.forEach((map, place) => {
      map.setColormapLabel(lookupTable(colors));
      map.opacity = !chosen.has(this.names[place]) ? 0 : differ ? OPACITY_BELOW_DIFFERENCES : OPACITY;
    });
    const kinds = Object.values(this.data.differences);
    this.differences.setColormapLabel(lookupTable(kinds.map((color, place) => ({ id: place + 1, color, visible: true }))));
    this.differences.opacity = differ ? 1 : 0;
    if (differ) {
      const [reference, ...others] = this.maps.map((map) => map.img);
      const compared = others.filter((_, place) => chosen.has(this.names[place + 1]));
      markDifferences(this.differences.img, reference, compared, classes);
    }
    this.niivue.updateGLVolume();
  }

  setWindow() {
    [this.ct.cal_min, this.ct.cal_max] = WINDOWS[this.input("window").value];
    this.niivue.updateGLVolume();
  }

  setView() {
    this.niivue.setSliceType(VIEWS[this.input("view").value]);
  }

  moveToSlice() {
    this.niivue.scene.crosshairPos[2] = (Number(this.input("slice").value) + 0.5) / this.slices;
    this.niivue.drawScene();
    this.showPlace();
  }

  showPlace() {
    const slice = Math.min(this.slices - 1, Math.floor(this.niivue.scene.crosshairPos[2] * this.slices));
    this.input("slice").value = slice;
    this.input("place").textContent = `${slice + 1} of ${this.slices}`;
  }

  get slices() {
    return this.ct.dims[3];
  }

  input(name) {
    return this.section.querySelector(`[name="${name}"]`);
  }

  inputs(name) {
    return [...this.section.querySelectorAll(`[name="${name}"]`)];
  }

  chosen(name) {
    return this.inputs(name).filter((input) => input.checked && !input.disabled).map((input) => input.value);
  }
}

/** Mark where label maps differ from the reference in some classes: 1 missed, 2 added, 3 another class. */
function markDifferences(marks, reference, compared, classes) {
  marks.fill(0);
  for (const found of compared) {
    for (let voxel = 0; voxel < marks.length; voxel++) {
      if (found[voxel] === reference[voxel]) continue;
      if (!classes.has(found[voxel]) && !classes.has(reference[voxel])) continue;
      marks[voxel] = found[voxel] === 0 ? 1 : reference[voxel] === 0 ? 2 : 3;
    }
  }
}

/** The axial slice with the most labelled voxels. */
function fullestSlice(labels, slices) {
  const counts = new Array(slices).fill(0);
  const size = labels.length / slices;
  labels.forEach((label, voxel) => { if (label) counts[Math.floor(voxel / size)]++; });
  return counts.indexOf(Math.max(...counts));
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

/** Start the viewer as soon as it is scrolled into view, so that the page opens at once. */
function startWhenSeen(section) {
  const observer = new IntersectionObserver(async ([entry]) => {
    if (!entry.isIntersecting) return;
    observer.disconnect();
    await loadNiivue();
    await new Viewer(section, JSON.parse(document.getElementById("viewer-data").textContent)).start();
  }, { rootMargin: "300px" });
  observer.observe(section);
}

if (document.createElement("canvas").getContext("webgl2")) {
  const section = document.getElementById("viewer");
  section.hidden = false;
  for (const button of document.querySelectorAll("[data-case]")) button.disabled = false;
  startWhenSeen(section);
}
