"""Share of tests at 5 % that reject a true null, for the tests of convrec_r1/evaluate/statistics.py.

    python experiments/simulate_seeds.py [--sets 1000]

Result in %: 200 clusters of 1 to 7 samples, 1,000 data sets, standard error 0.7 points at 5 %. Columns: standard deviation
that seeds leave in the mean difference, in units of what conversations leave in it. Below it, the standard deviation of the
interaction e in units of that of the conversations b.

                                            0           0.5            1             2
                                         0     1      0     1      0     1      0     1
    S = 2  paired seeds                5.3   3.2    4.3   3.4    8.4   5.7   11.8   7.9
           unpaired                    4.8   1.9    4.3   3.1    4.7   3.2    7.3   5.3
    S = 3  paired seeds                5.6   2.8    5.1   2.2    6.6   4.9    7.6   7.2
           unpaired                    6.2   3.1    4.7   3.4    4.2   4.5    4.5   4.8
           cluster bootstrap of
           the values of one seed      5.5   5.9   15.4  11.0   35.1  20.6   58.4  43.6
           the means over seeds        5.5   5.6    7.9   7.6   18.4  14.3   36.4  32.4
    S = 5  paired seeds                4.9   3.6    4.6   4.5    4.3   3.9    7.2   5.8
           unpaired                    6.1   2.9    4.3   3.4    4.2   4.1    6.9   4.2
           cluster bootstrap of
           the values of one seed      4.7   4.5   18.7  12.3   40.7  29.9   65.9  54.8
           the means over seeds        4.7   5.9    8.9   9.7   15.9  14.7   37.9  35.5
"""

import argparse

import numpy as np

from convrec_r1.evaluate.statistics import crossed_difference, paired_cluster_bootstrap

CLUSTERS = 200


def data(generator: np.random.Generator, seeds: int, between_seeds: float, interaction: float, paired: bool):
    """Values of two systems of equal quality, [S, M] each, and the cluster of each sample.

    Each cluster prefers one of the systems, by its own amount (standard deviation 1). `between_seeds`: standard
    deviation of what the seeds leave in the difference of the systems' means, in units of what the clusters leave in
    it; `interaction`: of what a cluster's difference varies by from seed to seed.
    """
    sizes = generator.integers(1, 8, CLUSTERS)
    labels = np.repeat(np.arange(CLUSTERS), sizes)
    unit = np.sqrt((sizes**2).sum()) / sizes.sum()
    shared = generator.normal(size=CLUSTERS)[labels]
    seed_effect = generator.normal(size=(seeds, 1)) * paired  # common to both systems, where a seed is
    systems = []
    for sign in (0.5, -0.5):
        run = generator.normal(size=(seeds, 1)) * between_seeds * unit * np.sqrt(seeds / 2)
        cell = generator.normal(size=(seeds, CLUSTERS))[:, labels] * interaction / np.sqrt(2)
        systems.append(seed_effect + sign * shared + run + cell)
    return systems[0], systems[1], labels


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--sets", type=int, default=1000)
    sets = parser.parse_args().sets
    print("S  seeds  interaction  paired  unpaired  cluster bootstrap of seed 1  of the mean over seeds")
    for seeds in (2, 3, 5):
        for between_seeds in (0.0, 0.5, 1.0, 2.0):
            for interaction in (0.0, 1.0):
                rejected = np.zeros(4)
                for number in range(sets):
                    generator = np.random.default_rng([seeds, int(4 * between_seeds), int(interaction), number])
                    a, b, labels = data(generator, seeds, between_seeds, interaction, paired=True)
                    c, d, others = data(generator, seeds, between_seeds, interaction, paired=False)
                    options = {"n_resamples": 500, "seed": number}
                    rejected += [
                        crossed_difference(a, b, labels, paired_seeds=True, **options).p_value <= 0.05,
                        crossed_difference(c, d, others, paired_seeds=False, **options).p_value <= 0.05,
                        paired_cluster_bootstrap(a[0], b[0], labels, **options).p_value <= 0.05,
                        paired_cluster_bootstrap(a.mean(0), b.mean(0), labels, **options).p_value <= 0.05,
                    ]
                rates = "  ".join(f"{100 * rate:5.1f}" for rate in rejected / sets)
                print(f"{seeds}  {between_seeds:5}  {interaction:5}  {rates}", flush=True)


if __name__ == "__main__":
    main()
