// Amounts of money. The service sends them as decimal texts, which are exact.

import { html } from "./vendor/htm-preact.js";

const FEW_CENTS = 1; // below one unit of a currency, fractions of its cents are shown
const writers = new Map();

/** An amount in its currency: two digits after the point, below 1 up to six; of a tiny one the first two that count. */
export function money({ amount, currency }) {
  const value = Number(amount);
  const digits = value && value < 0.000001 ? { maximumSignificantDigits: 2 } : { minimumFractionDigits: 2, maximumFractionDigits: value < FEW_CENTS ? 6 : 2 };
  const name = `${currency} ${JSON.stringify(digits)}`;
  if (!writers.has(name)) writers.set(name, new Intl.NumberFormat("en", { style: "currency", currency, ...digits }));
  return writers.get(name).format(value);
}

/** A cost beside its tokens; nothing where no prices are set. The exact amount is its title. */
export function Money({ cost }) {
  if (!cost) return null;
  const exact = `${cost.amount} ${cost.currency}${cost.estimated ? ", partly estimated" : ""}`;
  return html`<span class="cost" title=${exact}>${cost.estimated ? html`<span class="hidden">about </span>~` : null}${money(cost)}</span>`;
}
