"""BibTeX of the papers that the initializers come from."""


def bibtex(kind: str, key: str, **fields: str | int) -> str:
    """Compose a BibTeX entry.

    Args:
        kind: "article", "inproceedings", …
        key: the citation key.
        fields: the entry's fields, in order.

    Returns:
        The entry.

    >>> print(bibtex("misc", "doe2000", title="A title", year=2000))
    @misc{doe2000,
      title = {A title},
      year = {2000}
    }
    """
    lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
    return f"@{kind}{{{key},\n{lines}\n}}"


LECUN_1998 = bibtex(
    "incollection",
    "lecun1998efficient",
    title="Efficient BackProp",
    author="LeCun, Yann and Bottou, L{\\'e}on and Orr, Genevieve B. and M{\\\"u}ller, Klaus-Robert",
    booktitle="Neural Networks: Tricks of the Trade",
    pages="9--50",
    year=1998,
)
GLOROT_2010 = bibtex(
    "inproceedings",
    "glorot2010understanding",
    title="Understanding the difficulty of training deep feedforward neural networks",
    author="Glorot, Xavier and Bengio, Yoshua",
    booktitle="International Conference on Artificial Intelligence and Statistics",
    pages="249--256",
    year=2010,
)
MARTENS_2010 = bibtex(
    "inproceedings",
    "martens2010deep",
    title="Deep learning via Hessian-free optimization",
    author="Martens, James",
    booktitle="International Conference on Machine Learning",
    pages="735--742",
    year=2010,
)
KRIZHEVSKY_2012 = bibtex(
    "inproceedings",
    "krizhevsky2012imagenet",
    title="{ImageNet} classification with deep convolutional neural networks",
    author="Krizhevsky, Alex and Sutskever, Ilya and Hinton, Geoffrey E.",
    booktitle="Advances in Neural Information Processing Systems",
    year=2012,
)
SAXE_2014 = bibtex(
    "inproceedings",
    "saxe2014exact",
    title="Exact solutions to the nonlinear dynamics of learning in deep linear neural networks",
    author="Saxe, Andrew M. and McClelland, James L. and Ganguli, Surya",
    booktitle="International Conference on Learning Representations",
    year=2014,
)
JIA_2014 = bibtex(
    "inproceedings",
    "jia2014caffe",
    title="Caffe: Convolutional architecture for fast feature embedding",
    author="Jia, Yangqing and Shelhamer, Evan and Donahue, Jeff and Karayev, Sergey and Long, Jonathan "
    "and Girshick, Ross and Guadarrama, Sergio and Darrell, Trevor",
    booktitle="ACM International Conference on Multimedia",
    pages="675--678",
    year=2014,
)
LONG_2015 = bibtex(
    "inproceedings",
    "long2015fully",
    title="Fully convolutional networks for semantic segmentation",
    author="Long, Jonathan and Shelhamer, Evan and Darrell, Trevor",
    booktitle="IEEE Conference on Computer Vision and Pattern Recognition",
    pages="3431--3440",
    year=2015,
)
HE_2015 = bibtex(
    "inproceedings",
    "he2015delving",
    title="Delving deep into rectifiers: Surpassing human-level performance on {ImageNet} classification",
    author="He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian",
    booktitle="IEEE International Conference on Computer Vision",
    pages="1026--1034",
    year=2015,
)
LE_2015 = bibtex(
    "misc",
    "le2015simple",
    title="A simple way to initialize recurrent networks of rectified linear units",
    author="Le, Quoc V. and Jaitly, Navdeep and Hinton, Geoffrey E.",
    eprint="1504.00941",
    archiveprefix="arXiv",
    year=2015,
)
ZAGORUYKO_2017 = bibtex(
    "misc",
    "zagoruyko2017diracnets",
    title="{DiracNets}: Training very deep neural networks without skip-connections",
    author="Zagoruyko, Sergey and Komodakis, Nikos",
    eprint="1706.00388",
    archiveprefix="arXiv",
    year=2017,
)
XIAO_2018 = bibtex(
    "inproceedings",
    "xiao2018dynamical",
    title="Dynamical isometry and a mean field theory of {CNNs}: How to train 10,000-layer vanilla "
    "convolutional neural networks",
    author="Xiao, Lechao and Bahri, Yasaman and Sohl-Dickstein, Jascha and Schoenholz, Samuel S. "
    "and Pennington, Jeffrey",
    booktitle="International Conference on Machine Learning",
    pages="5393--5402",
    year=2018,
)
MARTENS_2021 = bibtex(
    "misc",
    "martens2021rapid",
    title="Rapid training of deep neural networks without skip connections or normalization layers "
    "using deep kernel shaping",
    author="Martens, James and Ballard, Andy and Desjardins, Guillaume and Swirszcz, Grzegorz and Dalibard, Valentin "
    "and Sohl-Dickstein, Jascha and Schoenholz, Samuel S.",
    eprint="2110.01765",
    archiveprefix="arXiv",
    year=2021,
)
