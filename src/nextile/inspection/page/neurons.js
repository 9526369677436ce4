// The feed-forward net's strongest neurons, and the tokens that they speak for.

import { make } from "./dom.js";
import { prediction } from "./lens.js";
import { unpack } from "./pack.js";
import { formula, note, number, piece, prose, Section, shape } from "./parts.js";

class Neurons {
  constructor(look) {
    this.look = look;
    const { neurons } = look.payload;
    this.indices = unpack(neurons.indices);
    this.activations = unpack(neurons.activations);
    this.promotes = neurons.promotes;
    this.tokens = look.names(look.payload.stacks[look.own].queries);
    this.title = make("p", { class: "readout" });
    this.list = make("div", { class: "neurons" });
    this.element = make("div", {}, this.title, this.list);
  }

  update() {
    const position = this.look.position(this.look.own) ?? this.position ?? this.tokens.length - 1;
    if (position === this.position || position >= this.tokens.length) return;
    this.position = position;
    this.title.replaceChildren("At ", make("b", { class: "word" }, piece(this.tokens[position].text)));
    const [layers] = this.indices.shape;
    this.list.replaceChildren(...Array.from({ length: layers }, (_, layer) => this.layer(layer, position)));
  }

  layer(layer, position) {
    const ranks = Array.from({ length: this.indices.shape[2] }, (_, rank) => this.neuron(layer, position, rank));
    return make("section", { class: "layer-of" }, make("h3", {}, `Layer ${layer}`), make("ol", {}, ...ranks));
  }

  neuron(layer, position, rank) {
    const index = this.indices.value(layer, position, rank);
    const said = this.promotes[`${layer}.${index}`];
    const { words: names, kind } = this.look.payload;
    const words = said?.map(([token]) => prediction(names[token], kind)) ?? [make("small", {}, "left out")];
    return make(
      "li",
      {},
      make("span", { class: "neuron-name" }, `#${index} `, number(this.activations.value(layer, position, rank), 2)),
      make("span", { class: "speaks" }, ...words.flatMap((each) => [each, " "])),
    );
  }
}

/** The section; null where there are none. */
export function mount(element, look) {
  if (!look.payload.neurons) return null;
  const view = new Neurons(look);
  const words = [
    formula(`mlp(*x*) = *W*_down_ \u00b7 *\u03c6*(*W*_up_ *x*)`, `${shape(...view.indices.shape)} shown`),
    prose("After looking around, each token is worked on by itself: a wide layer of neurons, a bend, and back. A neuron that is active adds its own vector to the stream, and that vector speaks for some predictions."),
    note("The number behind # is the activation; then what the neuron\u2019s vector, sent through the head alone, raises most (Geva et al. 2021). A negative activation lowers them instead."),
  ];
  const section = new Section("neurons", "Neurons", words, view.element);
  element.append(section.element);
  look.on(() => view.update());
  return section;
}
