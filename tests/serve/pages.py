"""The parts of the server's page, by role."""


def open_page(browse, client, *, path='', name='Generate', **options):
    page = browse(f'http://127.0.0.1:{client.port}/', path=path, **options)
    page.get_by_role('button', name=name, exact=True).wait_for()
    return page


def text_of(page):
    page.get_by_role('button', name='Continue', disabled=False).wait_for()
    return page.locator('p.unseen').text_content()


def write(page, *, tokens=20):
    page.get_by_role('spinbutton', name='Tokens').fill(str(tokens))
    page.get_by_role('button', name='Generate', exact=True).click()
    return text_of(page)


def pieces_of(page):
    return page.get_by_role('listbox').get_by_role('option')


def panel_of(page):
    return page.get_by_role('region', name='Token', exact=True)
