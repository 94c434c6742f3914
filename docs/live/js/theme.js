// Colours of the canvases, from the style sheet: light, dark, and what the visitor chose.

const NAMES = ["ink", "quiet", "line", "paper", "excitatory", "inhibitory", "accent"];
const KEY = "elm-neuro-live-theme";
const CHOICES = ["auto", "light", "dark"];

export class Theme {
  constructor(button) {
    this.button = button;
    this.choice = CHOICES.includes(stored()) ? stored() : "auto";
    this.changed = 0; // counts up, so that what is drawn once is drawn again
    button.addEventListener("click", () => this.choose(CHOICES[(CHOICES.indexOf(this.choice) + 1) % CHOICES.length]));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.choose(this.choice));
    this.choose(this.choice);
  }

  choose(choice) {
    this.choice = choice;
    document.documentElement.dataset.theme = choice;
    this.button.textContent = `Colours: ${choice}`;
    try {
      localStorage.setItem(KEY, choice);
    } catch {
      // a browser that keeps nothing forgets the choice
    }
    const probe = document.body.appendChild(document.createElement("span"));
    this.dark = getComputedStyle(probe).colorScheme === "dark" || (choice === "auto" && systemIsDark());
    this.colours = {};
    this.rgb = {}; // [red, green, blue], as pixels want it
    for (const name of NAMES) {
      probe.style.color = `var(--${name})`;
      this.colours[name] = getComputedStyle(probe).color; // resolved, as a canvas wants it
      this.rgb[name] = rgbOf(this.colours[name]);
    }
    probe.remove();
    this.changed += 1;
  }

  /** Colour of a time constant from 1 ms to 1 s and beyond: cold is fast, warm is slow. */
  ofTimeConstant(tau) {
    const share = Math.min(Math.max(Math.log10(tau) / 3, 0), 1);
    const [lightness, chroma] = this.dark ? [0.76, 0.14] : [0.55, 0.16];
    return `oklch(${lightness} ${chroma} ${235 - 215 * share})`;
  }
}

function rgbOf(colour) {
  const context = document.createElement("canvas").getContext("2d");
  context.fillStyle = colour;
  context.fillRect(0, 0, 1, 1);
  return context.getImageData(0, 0, 1, 1).data.slice(0, 3);
}

function systemIsDark() {
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

function stored() {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}
