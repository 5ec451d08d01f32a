const decimal: Readonly<Record<string, number>> = { n: -9, u: -6, m: -3, '': 0, k: 3, M: 6, G: 9, T: 12, P: 15, E: 18 }
const binary: Readonly<Record<string, bigint>> = { Ki: 10n, Mi: 20n, Gi: 30n, Ti: 40n, Pi: 50n, Ei: 60n }

/**
 * The value of a Kubernetes resource quantity (`10M`, `1.5Gi`, `2e6`) as an integer, rounded up (away from zero), as `Quantity.Value()` does.
 * Undefined when it is none.
 */
export function parseQuantity(text: string): bigint | undefined {
  const match = /^([+-]?)(\d+(?:\.\d*)?|\.\d+)(?:([numkMGTPE]|[KMGTPE]i)|[eE]([+-]?\d{1,2}))?$/.exec(text)
  if (match === null) return undefined
  const [, sign = '', digits = '', suffix = '', exponent] = match
  const [whole = '', fraction = ''] = digits.split('.')
  let numerator = BigInt(whole + fraction)
  let denominator = 10n ** BigInt(fraction.length)
  const shift = binary[suffix]
  if (shift !== undefined) numerator <<= shift
  else {
    const power = exponent === undefined ? (decimal[suffix] ?? 0) : Number(exponent)
    if (power >= 0) numerator *= 10n ** BigInt(power)
    else denominator *= 10n ** BigInt(-power)
  }
  const value = (numerator + denominator - 1n) / denominator
  return sign === '-' ? -value : value
}
