"use strict";
// Two linked NiiVue canvases: the reference on the left, the prediction and its uncertainty on the right. Volumes come
// from scripts beside the page, since a page opened from disk may not fetch.
{
  const told = JSON.parse(document.getElementById("viewer-data").textContent);
  const element = (id) => document.getElementById(id);
  const [chooser, layout, opacity, unsure, status] =
    ["viewer-case", "viewer-layout", "viewer-opacity", "viewer-uncertainty", "viewer-status"].map(element);
  const waiting = new Map();
  let screens;
  let shown = 0;

  window.medsslVolumes = (name, volumes) => waiting.get(name)(volumes);

  function run(source) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = `viewer/${source}`;
      script.onload = resolve;
      script.onerror = () => reject(new Error(`viewer/${source} cannot be loaded; keep the folder beside this page`));
      document.head.append(script);
    });
  }

  async function load(name) {
    const volumes = new Promise((resolve) => waiting.set(name, resolve));
    await run(name);
    return volumes;
  }

  function colours() {
    const map = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: ["background"] };
    for (const [label, name, colour] of told.classes) {
      const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
      [["R", r], ["G", g], ["B", b], ["A", 255], ["I", label], ["labels", name]].forEach(([key, value]) => map[key].push(value));
    }
    return map;
  }

  async function make(base64, name, options) {
    return window.niivue.NVImage.loadFromBase64({ base64, name: `${name}.nii.gz`, ...options });
  }

  async function open(canvas) {
    const screen = new window.niivue.Niivue({
      logLevel: "error", isRadiologicalConvention: true, sagittalNoseLeft: true, backColor: [0, 0, 0, 1],
      show3Dcrosshair: false, crosshairWidth: 0.25, crosshairWidthUnit: "percent", crosshairColor: [1, 1, 1, 0.6], isColorbar: false, dragAndDropEnabled: false,
    });
    await screen.attachToCanvas(element(canvas));
    return screen;
  }

  function adjust() {
    for (const screen of screens) {
      screen.setSliceType(Number(layout.value));
      if (screen.volumes.length > 1) screen.setOpacity(1, Number(opacity.value));
      if (screen.volumes.length > 2) screen.setOpacity(2, Number(unsure.value));
    }
  }

  async function fill(screen, volumes, label, uncertainty) {
    while (screen.volumes.length) screen.removeVolume(screen.volumes[0]);
    screen.addVolume(await make(volumes.image, "image", { colormap: "gray", cal_min: 0, cal_max: 255 }));
    const map = await make(label, "label", { opacity: Number(opacity.value) });
    map.setColormapLabel(colours());
    screen.addVolume(map);
    if (uncertainty) {
      screen.addVolume(await make(uncertainty, "uncertainty",
        { colormap: "inferno", cal_min: 8, cal_max: 160, opacity: Number(unsure.value) }));
    }
    screen.updateGLVolume();
  }

  async function show(index) {
    const turn = ++shown;
    const scene = told.scenes[index];
    status.textContent = "loading …";
    try {
      if (!screens) {
        await run("niivue.js");
        screens = [await open("viewer-reference"), await open("viewer-prediction")];
        screens[0].broadcastTo([screens[1]], { "2d": true, "3d": true });
        screens[1].broadcastTo([screens[0]], { "2d": true, "3d": true });
      }
      const [theirs, ours] = [await load(scene.case_script), await load(scene.prediction_script)];
      if (turn !== shown) return;
      await fill(screens[0], theirs, theirs.reference);
      await fill(screens[1], theirs, ours.prediction, ours.uncertainty);
      for (const screen of screens) screen.scene.crosshairPos = screen.mm2frac(scene.centre);
      adjust();
      unsure.disabled = !ours.uncertainty;
      const thinned = scene.steps.some((step) => step > 1) ? ` One voxel in every ${scene.steps.join(" x ")} is shown.` : "";
      status.textContent = `${scene.group}: ${scene.title}.${thinned}`;
    } catch (error) {
      status.textContent = `The viewer cannot show this: ${error.message}`;
    }
  }

  for (const control of [layout, opacity, unsure]) control.addEventListener("input", () => screens && adjust());
  chooser.addEventListener("change", () => show(Number(chooser.value)));
  for (const button of document.querySelectorAll("button.open")) {
    button.addEventListener("click", () => {
      chooser.value = button.dataset.scene;
      element("viewer").scrollIntoView();
      show(Number(button.dataset.scene));
    });
  }
  // A page with a viewer that nobody scrolls to loads nothing of it.
  new IntersectionObserver((entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    if (!shown) show(0);
  }).observe(element("viewer-screens"));
}
